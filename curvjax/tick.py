"""How long work tells how far it is."""

from collections.abc import Callable

Tick = Callable[[int, int], None]
"""Told (how many are done, how many there are)."""
