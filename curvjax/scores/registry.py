"""Published layer scores and plans by name. Each enters itself, by a decorator that says what it needs and its source.

A larger score: the unit deserves more capacity, or must keep more of its weights. A plan derives amounts at once, not
through one number for each unit.
"""

from collections.abc import Callable
from typing import NamedTuple, Protocol, TypeVar

from jaxtyping import Array, Float

from curvjax.registry import Registry
from curvjax.scores.evidence import Evidence

Of = TypeVar("Of", bound=Callable)


class Score(NamedTuple):
    """One published score.

    of: evidence -> `[K]` scores, in the order of the units; larger: more capacity, or more weights kept. needs: fields
    of `Evidence` that it reads besides the units. source: short citation. sign: -1 where the published measure points
    the other way, so that it is `sign * of(evidence)`. errors: evidence -> `[K]` standard errors, of a mean over draws.
    """

    of: Callable[[Evidence], Float[Array, " K"]]
    needs: tuple[str, ...]
    source: str
    sign: int = 1
    errors: Callable[[Evidence], Float[Array, " K"]] | None = None


class Planner(Protocol):
    """Evidence and a total to what each unit gets or gives.

    A planner of "bits" also takes `menu`, a `curvjax.allocation.Menu` of widths, sizes, frozen and tied units; None:
    any of the widths measured, for every unit by itself.
    """

    def __call__(self, evidence: Evidence, *, total: float) -> Float[Array, " K"]:
        """`[K]` amounts, in the order of the units."""
        ...


class Plan(NamedTuple):
    """One published allocation.

    of: (evidence, total) -> `[K]` amounts. needs: fields of `Evidence` that it reads besides the units. total: what the
    total counts. amount: what each unit's amount is. source: short citation. target: whose shares the amounts are; ""
    where they choose units.
    """

    of: Planner
    needs: tuple[str, ...]
    total: str
    amount: str
    source: str
    target: str = ""


SCORES: Registry[Score] = Registry("score")
PLANS: Registry[Plan] = Registry("plan")


def score(
    name: str,
    *,
    needs: tuple[str, ...],
    source: str,
    sign: int = 1,
    errors: Callable[[Evidence], Float[Array, " K"]] | None = None,
) -> Callable[[Of], Of]:
    """Enter a function of `Evidence` as the score `name`, for every command; the arguments are fields of `Score`.

    Raises:
      ValueError: if the name is taken, or evidence has no such field.

    Example:
      >>> from curvjax.scores import SCORES
      >>> SCORES["owl"].needs
      ('kernels', 'moments')
    """
    _require_fields(name, needs)

    def entered(of: Of) -> Of:
        SCORES.enter(name, Score(of, needs, source, sign, errors), place=of.__module__)
        return of

    return entered


def plan(
    name: str, *, needs: tuple[str, ...], total: str, amount: str, source: str, target: str = ""
) -> Callable[[Of], Of]:
    """Enter a `Planner` as the plan `name`; the arguments are fields of `Plan`.

    Raises:
      ValueError: if the name is taken, or evidence has no such field.

    Example:
      >>> from curvjax.scores import PLANS
      >>> PLANS["lamp"].target
      'sparsity'
    """
    _require_fields(name, needs)

    def entered(of: Of) -> Of:
        PLANS.enter(name, Plan(of, needs, total, amount, source, target), place=of.__module__)
        return of

    return entered


def _require_fields(name: str, needs: tuple[str, ...]) -> None:
    known = [field for field in Evidence._fields if field not in ("units", "widths")]
    unknown = sorted(set(needs) - set(known))
    if unknown:
        msg = f"{name} needs {unknown}, which evidence does not have; its fields are {', '.join(known)}."
        raise ValueError(msg)
