"""`Rebuilt`: a model whose units have what was planned for them, counted in its arrays -> rebuilt.json."""

from dataclasses import dataclass, field
from typing import Any, ClassVar

from curvjax.records.origin import Origin
from curvjax.records.scores import require_layer_order
from curvjax.records.value import LEFT_OUT, Value
from curvjax.storage import UNTOUCHED


@dataclass(frozen=True, kw_only=True)
class UnitRebuilt:
    """One unit. planned, realised: what it was to have and what its arrays have, in units of the target."""

    name: str
    index: int
    planned: float
    realised: float


@dataclass(frozen=True)
class Size:
    """Of the rebuilt units. parameters, bytes: as they lie in memory; flops: for one token."""

    parameters: int
    bytes: int
    flops: int


@dataclass(frozen=True, kw_only=True)
class Rebuilt(Value):
    """What a surgery made.

    method: its name in `curvjax.surgery.SURGERIES`; settings: its own. target: what units have. total: realised, in the
    budget's unit. before, after: sizes of the units named. remarks: what else is to be said, in words. evidence: of the
    method, JSON. origin: of the model that was rebuilt. model_sha256: of the model as it was saved, by which later
    records name it; only_checkpoint: why no Hugging Face directory could hold it; both None before. In memory only,
    model: the decoder; arrays: what is saved beside it, by name (masks); source: the model that was rebuilt, as loaded,
    whose tokenizer and files go along.

    Example:
      >>> import curvjax as cj
      >>> from curvjax.testing import tiny_model
      >>> made = cj.LoRA()(tiny_model(layers=1).model, {"layers.0": 2})
      >>> made.units[0].realised, made.after.parameters - made.before.parameters
      (2, 464)
    """

    schema: ClassVar[str] = "curvjax.rebuilt-model/1"
    method: str
    settings: dict[str, Any]
    target: str
    units: tuple[UnitRebuilt, ...]
    total: float
    before: Size
    after: Size
    remarks: tuple[str, ...] = ()
    evidence: dict[str, Any] = field(default_factory=dict)
    origin: Origin | None = None
    model_sha256: str | None = None
    only_checkpoint: str | None = None
    model: Any = field(default=None, compare=False, repr=False, metadata=LEFT_OUT)
    arrays: Any = field(default=None, compare=False, repr=False, metadata=LEFT_OUT)
    source: Any = field(default=None, compare=False, repr=False, metadata=LEFT_OUT)

    def __post_init__(self) -> None:
        """Refuse units that are not in layer order."""
        require_layer_order([(unit.name, unit.index) for unit in self.units], what=f"what {self.method} rebuilt")

    def stored_bits(self, whole: int) -> int:
        """Bits of all codes, scales and zeros, and of each weight that is none `whole` bits; of quantisations."""
        rows = self.evidence["storage"]["units"]
        return sum(
            whole * row["weights"] if row["bits"] == UNTOUCHED else 8 * (row["codes"] + row["scales"] + row["zeros"])
            for row in rows
        )
