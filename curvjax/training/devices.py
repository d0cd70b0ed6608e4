"""Rows over devices: every device holds the model and learns from 1/n of each microbatch; gradients are summed.

The compiler splits the work along the rows (`jax.jit` on sharded arrays), so that the step is written once for any
number of devices, and numbers are those of one device up to the order of the sums.
"""

from typing import TypeVar

import jax
from jax.sharding import AxisType, Mesh, NamedSharding, PartitionSpec

Tree = TypeVar("Tree")
ROWS = "rows"


def row_mesh(count: int | None) -> Mesh | None:
    """The first `count` devices of this process along one axis; None where one does all.

    Args:
      count: of devices; None: all there are.

    Raises:
      ValueError: if there are not as many.
    """
    devices = jax.local_devices()
    if count is not None and not 1 <= count <= len(devices):
        kind = devices[0].platform
        msg = f"devices must be from 1 to {len(devices)}, the {kind} devices of this process; got {count}."
        raise ValueError(msg)
    count = len(devices) if count is None else count
    return None if count == 1 else jax.make_mesh((count,), (ROWS,), (AxisType.Auto,), devices=devices[:count])


def everywhere(tree: Tree, mesh: Mesh | None) -> Tree:
    """All arrays, placed whole on every device; as they are where there is no mesh."""
    return tree if mesh is None else jax.device_put(tree, NamedSharding(mesh, PartitionSpec()))


def over_rows(tree: Tree, mesh: Mesh | None, *, axis: int) -> Tree:
    """Inside a compiled function: all arrays split along `axis`, which the number of devices divides."""
    spec = PartitionSpec(*[None] * axis, ROWS)
    return tree if mesh is None else jax.lax.with_sharding_constraint(tree, NamedSharding(mesh, spec))


def replicated(tree: Tree, mesh: Mesh | None) -> Tree:
    """Inside a compiled function: all arrays, such as sums over rows, whole on every device."""
    return tree if mesh is None else jax.lax.with_sharding_constraint(tree, NamedSharding(mesh, PartitionSpec()))
