"""Checked reading of config.json: every value that is used has the right type, or one error names its key."""

import json
import math
from collections.abc import Callable, Collection, Mapping
from typing import Any, NoReturn, TypeVar

T = TypeVar("T")
_ABSENT = object()
_LONGEST = 200  # characters of a value in a message


class Fields:
    """The entries of one config.json, or of one object in it, and which of them have been read.

    source: how errors call it. defaults: what entries that are absent mean.
    """

    def __init__(self, entries: Mapping[str, Any], *, source: str, defaults: Mapping[str, Any] | None = None):
        self.entries, self.source, self.defaults = entries, source, defaults or {}
        self._read: set[str] = set()
        self._parts: dict[str, Fields] = {}

    def count(self, key: str, default: Any = _ABSENT) -> int:
        """A positive integer."""
        value = self._value(key, default)
        if not isinstance(value, int) or isinstance(value, bool) or value < 1:
            self.refuse(key, value, "a positive integer")
        return value

    def index(self, key: str) -> int:
        """An integer from 0, such as a token number."""
        value = self._value(key)
        if not isinstance(value, int) or isinstance(value, bool) or value < 0:
            self.refuse(key, value, "an integer from 0")
        return value

    def number(self, key: str, default: Any = _ABSENT) -> float:
        """A positive finite number, as float."""
        value = self._value(key, default)
        if not isinstance(value, int | float) or isinstance(value, bool) or not 0 < value < math.inf:
            self.refuse(key, value, "a positive number")
        return float(value)

    def flag(self, key: str) -> bool:
        """True or false."""
        value = self._value(key)
        if not isinstance(value, bool):
            self.refuse(key, value, "true or false")
        return value

    def choice(self, key: str, allowed: Mapping[str, Any], default: Any = _ABSENT) -> Any:
        """What `allowed` holds for the entry."""
        value = self._value(key, default)
        if not isinstance(value, str) or value not in allowed:
            self.refuse(key, value, f"one of {sorted(allowed)}")
        return allowed[value]

    def optional(self, key: str, read: Callable[[str], T]) -> T | None:
        """`read(key)`, or None where the entry, or what its absence means, is null."""
        return None if self._value(key) is None else read(key)

    def part(self, key: str, *, under: Mapping[str, Any] | None = None) -> "Fields":
        """The object under `key`, laid over `under`; empty where it is absent or null."""
        value = self._value(key, None)
        if value is not None and not isinstance(value, Mapping):
            self.refuse(key, value, "an object")
        if key not in self._parts:
            self._parts[key] = Fields({**(under or {}), **(value or {})}, source=f"{self.source}: {key}")
        return self._parts[key]

    def rename(self, aliases: Mapping[str, str]) -> None:
        """Read each alias as the name it stands for; it must not contradict an entry of that name."""
        for alias, key in aliases.items():
            if alias not in self.entries:
                continue
            if key in self.entries and self.entries[key] != self.entries[alias]:
                self.refuse(alias, self.entries[alias], f"the same as {key!r}, {_spelt(self.entries[key])}")
            self.entries = {name: value for name, value in self.entries.items() if name != alias} | {
                key: self.entries[alias]
            }

    def ignore(self, *keys: str) -> None:
        """Note that entries, where present, have no part in the computation that the others ask for."""
        self._read.update(keys)

    def require(self, key: str, needed: Any, why: str) -> None:
        """Refuse any value but `needed`; an absent entry is fine."""
        found = self._value(key, needed)
        if type(found) is not type(needed) or found != needed:
            self.refuse(key, found, f"{_spelt(needed)}: {why}")

    def unread(self, harmless: Collection[str]) -> list[str]:
        """Entries that nobody has read and that are not `harmless`, by key; those of parts as `part.key`."""
        found = [key for key in self.entries if key not in self._read and key not in harmless]
        for key, part in self._parts.items():
            found += [f"{key}.{inner}" for inner in part.unread(())]
        return found

    def refuse(self, key: str, found: Any, expected: str) -> NoReturn:
        """Raise for one entry.

        Raises:
          ValueError: always, naming the file, the key, what came and what is allowed.
        """
        msg = f"{self.source}: {key!r} must be {expected}; found {_spelt(found)}."
        raise ValueError(msg)

    def _value(self, key: str, default: Any = _ABSENT) -> Any:
        self._read.add(key)
        return self.entries.get(key, self.defaults.get(key, _ABSENT) if default is _ABSENT else default)


def _spelt(value: Any) -> str:
    """A value as JSON spells it, cut short: a list of a million entries is no message."""
    if value is _ABSENT:
        return "nothing"
    text = json.dumps(value) if value is None or isinstance(value, bool) else repr(value)
    return text if len(text) <= _LONGEST else f"{text[:_LONGEST]}..."
