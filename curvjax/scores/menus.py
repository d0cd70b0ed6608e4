"""What plans of widths choose from."""

import numpy as np
from jaxtyping import Array, Float, Num

from curvjax.allocation.menu import Menu
from curvjax.scores.evidence import Evidence
from curvjax.scores.reading import matrices


def menu_of(plan: str, evidence: Evidence, menu: Menu | None) -> Menu:
    """The menu given; for None all widths of the evidence, for every unit by itself."""
    if menu is not None:
        return menu
    sizes = weights_of(plan, evidence)
    return Menu(np.asarray(evidence.widths.menu), sizes, np.zeros(sizes.size, bool))


def weights_of(plan: str, evidence: Evidence) -> Float[np.ndarray, " K"]:
    """Weights of each unit's matrices."""
    found = (matrices(plan, evidence, unit, "kernels") for unit in evidence.units)
    return np.array([sum(kernel.size for (kernel,) in unit) for unit in found], np.float64)


def columns(plan: str, evidence: Evidence, table: Num[Array, "K W"], menu: Menu) -> Float[np.ndarray, "K J"]:
    """The columns of the menu's widths, in its order.

    Args:
      plan: who asks, for the message.
      evidence: whose widths the table has.
      table: `[K, W]`.
      menu: of J widths.

    Returns:
      `[K, J]`.

    Raises:
      ValueError: if the table has other columns than widths, or a width of the menu is not measured.
    """
    measured = evidence.widths.menu
    if table.shape[1:] != (len(measured),):
        msg = f"plan {plan!r} needs a number for each of the widths {measured}, got an array of {table.shape}."
        raise ValueError(msg)
    missing = sorted(set(menu.amounts.tolist()) - set(measured))
    if missing:
        msg = f"plan {plan!r} chooses among widths {missing} too, but rounding was measured at {measured}: measure it."
        raise ValueError(msg)
    places = [measured.index(width) for width in menu.amounts.tolist()]
    return np.asarray(table, np.float64)[:, places]
