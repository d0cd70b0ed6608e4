"""Where units stand in a figure or a table: layer by layer, or one kind of projection after the other."""

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
from jaxtyping import Float, Int

from curvjax.layers import within_layer
from curvjax.records import Allocation, Comparison, LayerCard, Rebuilt, Transfer

_GAP = 2  # places between two kinds


class Units(NamedTuple):
    """K units in layer order, and their places on an axis.

    names: `[K]`, none where they are not known. place: `[K]` whole numbers from 0. index: `[K]` layers. kinds: what a
    layer has several of, in the order of their blocks on the axis; empty where it has one, or where names do not tell.
    width: of the axis, in places.
    """

    names: tuple[str, ...]
    place: Int[np.ndarray, " K"]
    index: Int[np.ndarray, " K"]
    kinds: tuple[str, ...]
    width: int

    @property
    def layers(self) -> Int[np.ndarray, " L"]:
        """The layers that there are."""
        return np.unique(self.index)

    @property
    def block(self) -> int:
        """Places from where one kind begins to where the next does."""
        return self.layers.size + _GAP

    def spread(self, values: Float[np.ndarray, "*M K"]) -> Float[np.ndarray, "*M width"]:
        """`values` at their places, nan between kinds, and where a layer lacks one."""
        found = np.full((*np.shape(values)[:-1], self.width), np.nan)
        found[..., self.place] = values
        return found

    def groups(self) -> list[tuple[str, Int[np.ndarray, " m"]]]:
        """Each kind with the positions, among the K, of its units; all units where there are no kinds."""
        if not self.kinds:
            return [("all", np.arange(self.index.size))]
        of = self.place // self.block
        return [(kind, np.flatnonzero(of == k)) for k, kind in enumerate(self.kinds)]

    def grid(self, cells: Sequence[str], *, absent: str) -> list[tuple[str, ...]]:
        """A row for each layer, with the cell of each kind; a row for each unit where there are no kinds."""
        if not self.kinds:
            return list(zip(self.names, cells, strict=True))
        at = dict(zip(self.place.tolist(), cells, strict=True))
        starts = [self.block * k for k in range(len(self.kinds))]
        return [
            (str(layer), *(at.get(start + row, absent) for start in starts)) for row, layer in enumerate(self.layers)
        ]


def arranged(index: Sequence[int] | Int[np.ndarray, " K"], names: Sequence[str] = ()) -> Units:
    """Units with the places that they have in every figure.

    Args:
      index: `[K]` layer of each unit, in layer order.
      names: `[K]`, `layers.3.mlp.up_proj`; without them no kinds are known.
    """
    index = np.asarray(index)
    inside = [within_layer(name) for name in names]
    kinds = tuple(dict.fromkeys(inside))
    if len(kinds) < 2 or len(kinds) == len(inside) or any(map(str.__eq__, inside, names)):
        return Units(tuple(names), np.arange(index.size), index, (), index.size)
    row, layers = np.searchsorted(np.unique(index), index), np.unique(index).size
    place = np.array([kinds.index(kind) for kind in inside]) * (layers + _GAP) + row
    return Units(tuple(names), place, index, _short(kinds), len(kinds) * (layers + _GAP) - _GAP)


def arranged_units(value: Allocation | Rebuilt | Comparison | Transfer | LayerCard) -> Units:
    """The units of a value, arranged."""
    return arranged([unit.index for unit in value.units], [unit.name for unit in value.units])


def _short(kinds: Sequence[str]) -> tuple[str, ...]:
    """`mlp.up_proj` as `up`, where that tells all kinds apart."""
    short = tuple(kind.rpartition(".")[2].removesuffix("_proj") for kind in kinds)
    return short if len(set(short)) == len(short) else tuple(kinds)
