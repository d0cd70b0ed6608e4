"""Models at amounts, one after another, by one method: what a search looks at."""

from collections.abc import Callable, Mapping, Sequence
from functools import lru_cache
from typing import NamedTuple

import numpy as np
from jaxtyping import Float, Int

from curvjax.data import Batch
from curvjax.layers import Unit
from curvjax.models import Decoder
from curvjax.surgery import Surgery, dense_equivalent
from curvjax.surgery.prices import FirstOrder, Gated, Order, by_gates, by_masks, in_order, masked

WholeAmounts = Callable[[Float[np.ndarray, " K"]], Int[np.ndarray, " K"]]
PricesAt = Callable[[Float[np.ndarray, " K"], float], FirstOrder]


class Draft(NamedTuple):
    """A model at amounts `[K]`: shares of weights removed, widths or ranks.

    order: in which weights go, None where the method has none. first_order: (amounts, half the width of a band of
    weights, in shares) to what one gradient says of prices there; None where no gradient does.
    """

    build: Callable[[Float[np.ndarray, " K"]], Decoder]
    order: Order | None = None
    first_order: PricesAt | None = None

    def __call__(self, amounts: Float[np.ndarray, " K"]) -> Decoder:
        """The model, with plain kernels where it has such a form."""
        return self.build(amounts)


def drafts(
    method: Surgery, model: Decoder, batch: Batch, units: Sequence[Unit], whole: WholeAmounts, *, target: str
) -> Draft:
    """How models at amounts are made: by masks in the dense model's order where the method has one, else by the method.

    The order is that of the dense model's inputs, and ranks of equal length in every output: a draft differs a little
    from what the method makes of the same amounts.

    Args:
      method: the surgery.
      model: the dense model.
      batch: calibration rows.
      units: K of them.
      whole: how shares, or entries of a menu, become whole amounts.
      target: of the program.
    """
    if (ordered := in_order(method)) is not None and target == "sparsity":
        order = ordered.order(model, batch, [path for unit in units for path in unit.paths])

        def pruned(x: Float[np.ndarray, " K"]) -> Decoder:
            return masked(model, order, by_path(units, x))

        return Draft(pruned, order, lambda x, band: by_masks(order, pruned(x), units, x, band=band))

    @lru_cache(maxsize=1)  # a look is judged, then moves are measured from it
    def built(amounts: tuple[int, ...]) -> Decoder:
        named = {unit.name: amount for unit, amount in zip(units, amounts, strict=True)}
        return rebuilt_readable(method, model, batch, named)

    def draft(x: Float[np.ndarray, " K"]) -> Decoder:
        return built(tuple(whole(x).tolist()))

    if isinstance(method, Gated) and target == "sparsity":
        return Draft(draft, first_order=lambda x, _: by_gates(method, draft(x), units))
    return Draft(draft)


def rebuilt_readable(method: Surgery, model: Decoder, batch: Batch, amounts: Mapping[str, int]) -> Decoder:
    """What the method makes of whole amounts; `batch` for methods that read text.

    With plain kernels, which are read fastest, where it has such a form: what looks at its inputs has none.
    """
    built = method(model, amounts, batch if method.reads_text else None).model
    try:
        return dense_equivalent(built)
    except ValueError:
        return built


def by_path(units: Sequence[Unit], x: Float[np.ndarray, " K"]) -> dict[str, float]:
    """Amounts of units as those of their kernels."""
    return {path: float(amount) for unit, amount in zip(units, x, strict=True) for path in unit.paths}
