"""Published rules by name: `(scores, budget) -> amounts`. Each enters itself, with what its amounts are of.

Of sparsities amounts are shares of each block to remove, and a larger score keeps more. Of ranks and experts amounts
are units, the first of each layer included, and a larger score gets more.
"""

from collections.abc import Callable
from typing import Any, NamedTuple, Protocol, TypeVar

from jax.typing import ArrayLike
from jaxtyping import Num

from curvjax.allocation.budget import BudgetConstraint
from curvjax.allocation.tuned import Tuned
from curvjax.registry import Registry

Of = TypeVar("Of", bound=Callable)


class Allocator(Protocol):
    """Amounts `[K]` from scores `[K]`."""

    def __call__(self, q: Num[ArrayLike, " K"], budget: BudgetConstraint, **settings: Any) -> Num[ArrayLike, " K"]:
        """Amounts within `budget`; settings are the rule's own."""
        ...


class Rule(NamedTuple):
    """of: the rule, with its published settings. targets: of programs. reads_scores: whether it looks at scores.

    tuned: name and values of the setting that a fair comparison chooses on selection texts; None where there is none.
    """

    of: Allocator
    targets: tuple[str, ...]
    reads_scores: bool = True
    tuned: Tuned | None = None


RULES: Registry[Rule] = Registry("rule")


def rule(name: str, *targets: str, reads_scores: bool = True, tuned: Tuned | None = None) -> Callable[[Of], Of]:
    """Enter a function as the rule `name`, for every command; the arguments are fields of `Rule`.

    Raises:
      ValueError: if the name is taken.

    Example:
      >>> from curvjax.allocation.rules import RULES
      >>> RULES["owl"].targets
      ('sparsity',)
    """

    def entered(of: Of) -> Of:
        RULES.enter(name, Rule(of, targets, reads_scores, tuned), place=of.__module__)
        return of

    return entered
