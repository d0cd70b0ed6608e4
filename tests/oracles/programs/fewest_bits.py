"""Beside the workers, for those that read widths off codes."""


def fewest_bits(low: int, high: int) -> int:
    """The fewest bits whose signed range holds all codes from low to high."""
    return next(bits for bits in range(1, 9) if -(1 << bits - 1) <= low and high < 1 << bits - 1)
