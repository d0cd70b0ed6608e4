"""How what a surgery made is trained, said by the surgery: what learns, what a step computes with, what comes out."""

from collections.abc import Callable, Collection, Mapping
from typing import NamedTuple, Protocol, TypeVar, runtime_checkable

import jax
from flax import nnx
from jaxtyping import Array, Float

from curvjax.data import Batch
from curvjax.models import Decoder
from curvjax.records import Rebuilt
from curvjax.surgery.method import SURGERIES, Surgery

Module = TypeVar("Module", bound=nnx.Module)


class Draw(Protocol):
    """Which layers learn, with all their weights, from one draw to the next; what lies outside the stack always does.

    A NamedTuple of numbers, such as `LayerDraw`: hashable, and run.json has it as it is.
    """

    @property
    def every(self) -> int:
        """K, steps from one draw to the next."""
        ...

    def drawable(self, layers: int) -> tuple[int, ...]:
        """All that may ever be drawn from a stack of so many; a ValueError if this is no draw of such a stack."""
        ...

    def drawn(self, seed: int, step: int, model: Decoder, rows: Batch) -> tuple[int, ...]:
        """Layers of K steps, rising, by the run's seed, the first step, the model as it is by then, and its rows."""
        ...


class Regularizer(Protocol):
    """What a step computes with in place of the model, and adds to its loss; a NamedTuple, as a `Draw` is."""

    def applied(self, model: Module, key: jax.Array | None) -> Module:
        """A copy of the model for one microbatch; arrays are shared."""
        ...

    def penalty(self, model: nnx.Module) -> Float[Array, ""]:
        """Beside the mean cross-entropy, nats."""
        ...


class Lesson(NamedTuple):
    """How one rebuilt model is trained.

    model: in which adapters, experts and marked factors learn, see `trained_parameters`. learns: paths of parameters
    that learn in their place, in a plain model. draw: or whole layers, drawn anew. regularizer: of each microbatch.
    finished: `model as trained -> Rebuilt`; None: it takes the place of the one that was born. beside: arrays that an
    adapter is saved with, besides what learned.

    Example:
      >>> import curvjax as cj
      >>> from curvjax.testing import tiny_model
      >>> method = cj.LISA(layers=1)
      >>> method.lesson(method(tiny_model(layers=2).model, {"layers.0": 1, "layers.1": 3})).draw
      LayerDraw(every=20, layers=1, weights=(1.0, 3.0))
    """

    model: Decoder
    learns: Collection[str] | None = None
    draw: Draw | None = None
    regularizer: Regularizer | None = None
    finished: Callable[[Decoder], Rebuilt] | None = None
    beside: Mapping[str, Array] = {}


@runtime_checkable
class Learning(Protocol):
    """A `Surgery` that `adapt` trains. A model comes out, unless it is `Restoring` too."""

    def lesson(self, born: Rebuilt) -> Lesson:
        """How to train what the surgery made; a ValueError if it cannot be."""
        ...


@runtime_checkable
class Restoring(Learning, Protocol):
    """One of which an adapter comes out: what learned, saved without the model, and put back into it."""

    def restored(self, model: Decoder, amounts: Mapping[str, int], arrays: Mapping[str, Array]) -> Decoder:
        """The plain model with what learned, `trained_parameters` and what the lesson had beside; no text is needed."""
        ...


def require_learning(method: Surgery) -> Learning:
    """The method.

    Raises:
      ValueError: if it does not say how it learns; the message names those that do.
    """
    if not isinstance(method, Learning):
        able = ", ".join(name for name, kind in SURGERIES.items() if issubclass(kind, Learning))
        msg = f"{method.name} does not say what of its model learns (a method `lesson`); methods that do: {able}."
        raise ValueError(msg)
    return method
