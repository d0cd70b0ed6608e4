"""Projections as products of two thin matrices."""

from curvjax.registry import import_all

import_all(__name__, __path__)
