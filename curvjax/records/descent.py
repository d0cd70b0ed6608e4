"""`Descent`: amounts moved towards equal measured prices, iterate by iterate -> descent.json."""

from dataclasses import dataclass
from typing import Any, ClassVar

from curvjax.records.allocation import Allocation
from curvjax.records.origin import Origin, TextOrigin
from curvjax.records.value import Value


@dataclass(frozen=True, kw_only=True)
class Iterate:
    """One look. amounts: `[K]`, shares removed, widths or ranks. selection_nll: nats a token.

    origin: place of the look that it steps from, None for the start. prices: `[K]` of a unit of budget. spread:
    residual of the measured problem. up, down: `[K]` measured change of the objective by one entry up and down
    the menu, by rising cost (of N:M, fewer zeros are up), None where there is none. These four are None where a look
    was only judged.
    """

    amounts: tuple[float, ...]
    selection_nll: float
    origin: int | None = None
    prices: tuple[float, ...] | None = None
    spread: float | None = None
    up: tuple[float | None, ...] | None = None
    down: tuple[float | None, ...] | None = None


@dataclass(frozen=True, kw_only=True)
class PriceCheck:
    """A price at the start beside what it approximates: slope, the central difference of the objective."""

    unit: str
    price: float
    slope: float


@dataclass(frozen=True, kw_only=True)
class Descent(Value):
    """A budget shared out by measured prices.

    method: that rebuilds, and that was priced. best: place of the look of least selection loss, 0 where nothing beat
    the start. allocation: of that look, in whole amounts. gradient_count: spent on prices, in gradients of the whole
    model on the rows of one round; a forward pass counts as a third. checks: of first-order prices, a few units.
    """

    schema: ClassVar[str] = "curvjax.descent/2"
    method: str
    settings: dict[str, Any]
    units: tuple[str, ...]
    iterates: tuple[Iterate, ...]
    best: int
    gradient_count: float
    checks: tuple[PriceCheck, ...] = ()
    allocation: Allocation
    selection: TextOrigin
    origin: Origin

    @property
    def objective(self) -> str:
        """What prices are slopes of: divergence, or loss, as it was before there was a choice."""
        return self.settings.get("objective", "loss")
