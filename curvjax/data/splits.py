"""Samples and splits that depend on the seed and the documents' content, never on the order in which they came."""

import hashlib
from collections.abc import Iterable, Sequence
from itertools import combinations
from typing import Any, NamedTuple, Protocol, TypeVar, runtime_checkable


@runtime_checkable
class Item(Protocol):
    """A `Document` or a `Question`."""

    @property
    def id(self) -> str:
        """Where it comes from."""

    @property
    def content(self) -> str:
        """What two sides of a split must not share."""

    @property
    def group(self) -> str:
        """Items of one group stay together; empty: the content decides."""


AnyItem = TypeVar("AnyItem", bound=Item)


class Splits(NamedTuple):
    """Three lists of documents or questions without common content: calibration (or training), selection, test."""

    calibration: list[Any]  # not generic: run-time type checkers know no generic NamedTuple
    selection: list[Any]
    test: list[Any]


def sample(items: Sequence[AnyItem], count: int, *, seed: int) -> list[AnyItem]:
    """`count` of the items, without replacement, in random order.

    Raises:
      ValueError: if there are fewer than `count`, or `count` is below 1.
    """
    if not 1 <= count <= len(items):
        msg = f"cannot sample {count} of {len(items)} documents; ask for 1 to {len(items)}."
        raise ValueError(msg)
    return sorted(items, key=lambda item: _shuffle_key(seed, repr(item)))[:count]


def split_documents(
    items: Sequence[Item],
    *,
    seed: int,
    counts: tuple[int, int, int] | None = None,
    shares: tuple[float, float, float] | None = None,
) -> Splits:
    """Disjoint calibration, selection and test parts.

    Items of equal content (up to white space) or of one group never lie on two sides: groups are taken in random order,
    each as a whole, by the part that is emptiest for its size.

    Args:
      items: documents or questions.
      seed: same seed and same items, in any order: same parts.
      counts: items of each part; met exactly, what is left over is not used.
      shares: or else the share of each part, summing to 1; every item is used, and shares are met up to the size of the
        groups.

    Raises:
      ValueError: if not exactly one of `counts` and `shares` is given, or it is out of range; if there are too few
        items; if two groups share content.
    """
    if (counts is None) == (shares is None):
        msg = f"give either counts or shares; got counts={counts} and shares={shares}."
        raise ValueError(msg)
    sizes = _share_counts(len(items), shares) if counts is None else counts
    if min(sizes) < 0 or sum(sizes) == 0:
        msg = f"counts must not be negative, nor all 0; got {sizes}."
        raise ValueError(msg)
    groups = _shuffled_groups(items, seed)
    splits = _filled(groups, sizes, exact=counts is not None)
    short = [len(part) < (size if counts else min(size, 1)) for part, size in zip(splits, sizes, strict=True)]
    if any(short):
        msg = (
            f"too few documents: {sum(sizes)} needed, {sizes} for calibration, selection and test; there are "
            f"{len(items)} in {len(groups)} groups of distinct content, which fill {tuple(map(len, splits))}; give "
            "more, or cut long ones (`sections`)."
        )
        raise ValueError(msg)
    _require_disjoint(splits)
    return splits


def content_hash(item: Item) -> str:
    """SHA-256, in hexadecimal, of the content with its white space made even: equal where two items are the same."""
    return hashlib.sha256(" ".join(item.content.split()).encode()).hexdigest()


def _share_counts(total: int, shares: tuple[float, float, float] | None) -> tuple[int, int, int]:
    if shares is None or min(shares) < 0 or abs(sum(shares) - 1) > 1e-6:
        msg = f"shares must not be negative and must sum to 1; got {shares}."
        raise ValueError(msg)
    _, selection, test = (max(round(share * total), 1) if share else 0 for share in shares)
    calibration = max(total - selection - test, 1) if shares[0] else 0
    return calibration, selection, test


def _shuffled_groups(items: Iterable[Item], seed: int) -> list[list[Item]]:
    groups: dict[str, list[Item]] = {}
    for item in items:
        groups.setdefault(item.group or content_hash(item), []).append(item)
    shuffled = sorted(groups, key=lambda name: _shuffle_key(seed, name))
    return [sorted(groups[name], key=repr) for name in shuffled]


def _filled(groups: Iterable[list[Item]], sizes: tuple[int, int, int], *, exact: bool) -> Splits:
    splits = Splits([], [], [])
    for group in groups:
        parts = [(part, size) for part, size in zip(splits, sizes, strict=True) if size]
        fitting = [one for one in parts if not exact or len(one[0]) + len(group) <= one[1]]
        if fitting:
            emptiest, _ = min(fitting, key=lambda one: len(one[0]) / one[1])
            emptiest.extend(group)
    return splits


def _require_disjoint(splits: Splits) -> None:
    contents = ({content_hash(item): item.id for item in part} for part in splits)
    for one, other in combinations(contents, 2):
        shared = one.keys() & other.keys()
        if shared:
            pair = next((one[key], other[key]) for key in shared)
            msg = f"{len(shared)} contents lie on two sides, e.g. documents {pair}; put them in one group."
            raise ValueError(msg)


def _shuffle_key(seed: int, name: str) -> str:
    return hashlib.sha256(f"{seed}\0{name}".encode()).hexdigest()
