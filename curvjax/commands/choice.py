"""A flag that chooses a value, whose own fields then are flags too."""

from collections.abc import Mapping, Sequence
from dataclasses import field, make_dataclass, replace
from functools import partial
from types import MappingProxyType
from typing import Annotated, Any, NamedTuple

import tyro


class Choice(NamedTuple):
    """flag: of the name. among: values by name. default: the name where the flag is not given. into: the field.

    prefix: of the flags of the value's own fields, before a dot; "" for none. begin: values that flags change, by name;
    those of other names begin with their fields' own defaults.
    """

    flag: str
    among: Mapping[str, type]
    default: str
    into: str
    prefix: str = ""
    begin: Mapping[str, Any] = MappingProxyType({})


def with_choices(command: type, arguments: Sequence[str]) -> type:
    """`command` with a field for each of its `choices`, of the class that the arguments name.

    Args:
      command: a dataclass with `choices`, each of which has a field of its flag's name.
      arguments: of the command line.

    Returns:
      A dataclass for `tyro.cli`.

    Raises:
      ValueError: if a name is not among those of its choice.
    """
    fields = []
    for choice in getattr(command, "choices", ()):
        name = _given(choice.flag, arguments) or choice.default
        if name not in choice.among:
            msg = f"{choice.flag} must be one of {', '.join(choice.among)}; got {name!r}."
            raise ValueError(msg)
        kind: Any = choice.among[name]
        begin = partial(replace, choice.begin[name]) if name in choice.begin else kind
        fields.append((choice.into, Annotated[kind, tyro.conf.arg(name=choice.prefix)], field(default_factory=begin)))
    if not fields:
        return command
    return make_dataclass(
        command.__name__, fields, bases=(command,), frozen=True, namespace={"__doc__": command.__doc__}
    )


def _given(flag: str, arguments: Sequence[str]) -> str | None:
    """The value of a flag, in either of its spellings; the last one counts."""
    found = None
    for here, following in zip(arguments, [*arguments[1:], None], strict=True):
        if here == flag:
            found = following
        elif here.startswith(f"{flag}="):
            found = here.partition("=")[2]
    return found
