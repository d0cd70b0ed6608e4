"""Docstrings and classes as the site reads them."""

from typing import Any

import griffe


class Ours(griffe.Extension):
    """Reads what Griffe does not know by itself: our `Example:`, and the fields of a NamedTuple as its signature."""

    def on_object(self, *, obj: griffe.Object, **_: Any) -> None:
        """Rename `Example:` to `Examples:`, so that prompts are code and no quotations."""
        if obj.docstring is not None:
            obj.docstring.value = obj.docstring.value.replace("Example:\n", "Examples:\n")

    def on_class_members(self, *, cls: griffe.Class, **_: Any) -> None:
        """Give a NamedTuple the `__init__` that it has at run time."""
        if not any(str(base).rpartition(".")[2] == "NamedTuple" for base in cls.bases):
            return
        kind = griffe.ParameterKind.positional_or_keyword
        fields = [each for each in cls.attributes.values() if each.annotation is not None]
        parameters = [griffe.Parameter("self", kind=kind)]
        parameters += [griffe.Parameter(e.name, annotation=e.annotation, kind=kind, default=e.value) for e in fields]
        cls.set_member("__init__", griffe.Function("__init__", parameters=griffe.Parameters(*parameters)))
