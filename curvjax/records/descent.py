"""`Descent`: amounts moved towards equal measured prices, iterate by iterate -> descent.json."""

from dataclasses import dataclass
from typing import Any, ClassVar

from curvjax.records.allocation import Allocation
from curvjax.records.origin import Origin, TextOrigin
from curvjax.records.value import Value


@dataclass(frozen=True, kw_only=True)
class Iterate:
    """One look. shares, prices: `[K]`. spread: residual of the measured problem. losses: nats a token.

    prices, spread: None for the last look, which is only judged.
    """

    shares: tuple[float, ...]
    selection_nll: float
    prices: tuple[float, ...] | None = None
    spread: float | None = None


@dataclass(frozen=True, kw_only=True)
class Descent(Value):
    """A budget shared out by measured prices.

    method: whose masks were priced. best: place of the iterate of least selection loss, 0 where nothing beat the start.
    allocation: of that iterate, in whole amounts. gradient_count: spent, of the whole model on the calibration rows.
    """

    schema: ClassVar[str] = "curvjax.descent/1"
    method: str
    settings: dict[str, Any]
    units: tuple[str, ...]
    iterates: tuple[Iterate, ...]
    best: int
    gradient_count: float
    allocation: Allocation
    selection: TextOrigin
    origin: Origin
