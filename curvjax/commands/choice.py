"""A flag that chooses a value, whose own fields then are flags too."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import field, make_dataclass, replace
from functools import partial
from types import MappingProxyType
from typing import Annotated, Any, NamedTuple

import tyro


class ChoiceFlag(NamedTuple):
    """flag: of the name. among: values by name. default: the name where the flag is not given. into: the field.

    prefix: of the flags of the value's own fields, before a dot; "" for none. begin: values that flags change, by name;
    those of other names begin with their fields' own defaults. fitting: whether a class is offered here.
    """

    flag: str
    among: Mapping[str, type]
    default: str
    into: str
    prefix: str = ""
    begin: Mapping[str, Any] = MappingProxyType({})
    fitting: Callable[[type], bool] = lambda _: True

    @property
    def offered(self) -> list[str]:
        """The names to choose from, with all that is registered by now."""
        return sorted(name for name, kind in self.among.items() if self.fitting(kind))


def with_choices(command: type, arguments: Sequence[str]) -> type:
    """`command` with a field for each of its `choices`, of the class that the arguments name.

    Args:
      command: a dataclass with `choices`; fields of their flags' names are of it, or of settings within.
      arguments: of the command line.

    Returns:
      A dataclass for `tyro.cli`, whose help lists what there is to choose from.

    Raises:
      ValueError: if a name is not among those of its choice.
    """
    fields = []
    for choice in getattr(command, "choices", ()):
        name = _given(choice.flag, arguments) or choice.default
        if name not in choice.offered:
            msg = f"{choice.flag} must be one of {', '.join(choice.offered)}; got {name!r}."
            raise ValueError(msg)
        asked = choice.flag.removeprefix("--").replace("-", "_")
        if hasattr(command, asked):  # else a field of its settings asks
            listed = Annotated[str, tyro.conf.arg(metavar=f"{{{','.join(choice.offered)}}}")]
            fields.append((asked, listed, field(default=choice.default)))
        kind: Any = choice.among[name]
        begin = partial(replace, choice.begin[name]) if name in choice.begin else kind
        fields.append((choice.into, Annotated[kind, tyro.conf.arg(name=choice.prefix)], field(default_factory=begin)))
    if not fields:
        return command
    return make_dataclass(
        command.__name__, fields, bases=(command,), frozen=True, namespace={"__doc__": command.__doc__}
    )


def _given(flag: str, arguments: Sequence[str]) -> str | None:
    """The value of a flag, in any of its spellings, `--a-b x`, `--a_b x` and `--a-b=x`; the last one counts."""
    found = None
    for here, following in zip(arguments, [*arguments[1:], None], strict=True):
        name, joined, value = here.partition("=")
        if name.replace("_", "-") == flag:
            found = value if joined else following
    return found
