"""Structures that go: channels, heads, layers."""

from curvjax.registry import import_all

import_all(__name__, __path__)
