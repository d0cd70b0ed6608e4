"""The few settings that a report has words for, read from those of a value's origin."""

from dataclasses import dataclass
from typing import Any, TypeVar

import msgspec

from curvjax.records import plain

Kind = TypeVar("Kind", bound="_Chosen")


class _Chosen:
    @classmethod
    def of(cls: type[Kind], settings: dict[str, Any]) -> Kind:
        """These of all settings.

        Raises:
          ValueError: if one has another type.
        """
        try:
            return msgspec.convert(plain(settings), cls)
        except msgspec.ValidationError as error:
            msg = f"the settings {settings} are none that a report knows: {error}. Write the record again."
            raise ValueError(msg) from error


@dataclass(frozen=True, kw_only=True)
class Measurement(_Chosen):
    """How gains were measured. policy, damping: how tau was chosen, and its number. rtol: relative width asked for."""

    curvature: str = ""
    policy: str = ""
    damping: float | None = None
    rtol: float | None = None


@dataclass(frozen=True, kw_only=True)
class ProgramSettings(_Chosen):
    """Of an allocation program. target: what units receive. alpha: price of a unit of it, one or `[K]`."""

    alpha: float | tuple[float, ...] | None = None
    target: str = "amount"
