"""`LayerCard`: what each unit has to correct, what correcting it costs, and what came of it -> card.json."""

from dataclasses import dataclass
from typing import ClassVar

from curvjax.records.origin import Origin
from curvjax.records.scores import require_layer_order
from curvjax.records.value import Value


@dataclass(frozen=True, kw_only=True)
class AdapterCost:
    """What adapting one unit alone costs; counted from shapes, not timed. trained: parameters of its adapters.

    optimizer_bytes: AdamW's two moments, float32. training_flops: for one token, of matrix products, forward through
    the whole model and back to the unit's layer. serving_flops: for one token beside the model, as long as adapters are
    not folded in; then 0.
    """

    trained: int
    optimizer_bytes: int
    training_flops: int
    serving_flops: int


@dataclass(frozen=True, kw_only=True)
class CardUnit:
    """One unit. resnorm: nats, energy, coupling: see `LayerCard`; None where there is none. parameters: its own.

    flops: of its matrix products for one token. decrease: of the loss, in nats, when this unit alone was moved; fresh:
    the same on tokens that did not choose the move; None where nothing was tried.
    """

    name: str
    index: int
    parameters: int
    flops: int
    resnorm: float | None
    energy: float | None
    coupling: float | None
    cost: AdapterCost
    decrease: float | None = None
    fresh: float | None = None


@dataclass(frozen=True, kw_only=True)
class LayerCard(Value):
    """The Layer Card of a model on a text: residual signal, cost and outcome, unit by unit, in layer order.

    resnorm: |G (Sigma + tau I)^-1/2|_F^2, how much of the loss a unit's matrices could correct. energy: tr(Sigma) / d.
    coupling: c_k = sum_{j != k} |E_jk| / sqrt(E_jj E_kk). rank: of the adapters whose cost is counted. tried: what
    `decrease` is of, in words; empty where nothing was.

    Example:
      >>> import curvjax as cj
      >>> model = cj.load("glassllm")
      >>> text = cj.read("demo:squad", model, tokens=64, length=64)
      >>> card = cj.layer_card(model, text, rank=4)
      >>> [unit.cost.training_flops > card.units[-1].cost.training_flops for unit in card.units[:-1]]
      [True, True, True]
    """

    schema: ClassVar[str] = "curvjax.card/1"
    units: tuple[CardUnit, ...]
    granularity: str
    rank: int
    origin: Origin
    tried: str = ""

    def __post_init__(self) -> None:
        """Refuse units that are not in layer order."""
        require_layer_order([(unit.name, unit.index) for unit in self.units], what="the card")
