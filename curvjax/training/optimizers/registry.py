"""What an optimiser is: a value that turns gradients into steps; and the registry of them by name."""

from collections.abc import Callable, Mapping
from dataclasses import Field, asdict
from typing import Any, ClassVar, NamedTuple, Protocol, TypeVar, runtime_checkable

import jax
import optax
from jaxtyping import Array, Float

from curvjax.registry import Registry

Trained = dict[str, Array]
"""Arrays that learn by path, `layers.3.self_attn.q_proj.lora_a`, or gradients and steps of their shapes."""


class OptimizerTerms(NamedTuple):
    """What a run asks of any optimiser. rate: learning rate by step. weight_decay: decoupled, on all that learns.

    scales: s of each adapted projection's W + s A B, by module path.
    """

    rate: optax.Schedule
    weight_decay: float
    scales: Mapping[str, float]


class Optimizer(Protocol):
    """A frozen dataclass whose fields are its settings. name: by which commands and records call it.

    Hashable, so that equal recipes share one compilation. The gradient is clipped before it comes here.
    """

    __dataclass_fields__: ClassVar[dict[str, Field[Any]]]
    name: ClassVar[str]

    def transformation(self, terms: OptimizerTerms) -> optax.GradientTransformation:
        """Gradients by path to steps by path, to be added to what learns.

        Args:
          terms: of the run.

        Returns:
          A pure pair (init, update) over `Trained`, whose state has no empty arrays.
        """
        ...


class Estimate(NamedTuple):
    """losses: those at `trained`. gradient: found by losses alone. state: for the next step."""

    losses: Any
    gradient: Trained
    state: Any


@runtime_checkable
class Estimating(Protocol):
    """An `Optimizer` that finds the gradient by losses alone: nothing is propagated backwards."""

    def begin(self, trained: Trained) -> Any:
        """Its state before the first step."""
        ...

    def estimate(
        self, losses: Callable[[Trained], tuple[Float[Array, ""], Any]], trained: Trained, state: Any, *, key: Array
    ) -> Estimate:
        """The gradient of the first of `losses` at `trained`.

        Args:
          losses: `trained -> (what is minimised, what is reported)`, the same rows and dropout at every call.
          trained: where.
          state: from `begin`, or of the step before.
          key: of this step.

        Returns:
          An `Estimate`.
        """
        ...


OPTIMIZERS: Registry[type[Optimizer]] = Registry("optimizer")

Kind = TypeVar("Kind", bound=type[Optimizer])


def optimizer(kind: Kind) -> Kind:
    """Enter an optimiser under its `name`, for `curvjax adapt --optimizer`.

    Raises:
      ValueError: if the name is taken.

    Example:
      >>> from curvjax.training import OPTIMIZERS
      >>> OPTIMIZERS["lamb"]().beta2
      0.999
    """
    OPTIMIZERS.enter(kind.name, kind, place=kind.__module__)
    return kind


def described(optimizer: Optimizer) -> dict[str, Any]:
    """Name and settings, for records and for the identity of a run.

    Example:
      >>> from curvjax.training import LAMB, described
      >>> described(LAMB(least_norm=0.0))["name"]
      'lamb'
    """
    return {"name": optimizer.name} | asdict(optimizer)


def state_size(state: Any) -> int:
    """Numbers that an optimiser keeps from one step to the next: elements of all arrays of its state.

    Example:
      >>> import jax.numpy as jnp
      >>> from curvjax.training import AdamW, OptimizerTerms, state_size
      >>> terms = OptimizerTerms(rate=lambda step: 0.1, weight_decay=0.0, scales={})
      >>> state_size(AdamW().transformation(terms).init({"lora_a": jnp.zeros((8, 2))}))  # two moments, two counters
      34
    """
    return sum(leaf.size for leaf in jax.tree.leaves(state))
