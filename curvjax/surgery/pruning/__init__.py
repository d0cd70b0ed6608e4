"""Weights that go, or are not read, one by one or N of M."""

from curvjax.registry import import_all

import_all(__name__, __path__)
