"""Weights on grids: codes, groups and widths, and the ways of choosing them."""

from curvjax.registry import import_all

import_all(__name__, __path__)
