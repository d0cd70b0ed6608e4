"""Names to methods. A method enters itself where it is defined, so that adding one is adding one file."""

import pkgutil
from collections.abc import Iterable
from importlib import import_module
from importlib.metadata import entry_points
from typing import Generic, TypeVar

Entry = TypeVar("Entry")


class Registry(dict[str, Entry], Generic[Entry]):
    """Entries by name, in the order in which they came. kind: what they are, for messages.

    Example:
      >>> from curvjax.registry import Registry
      >>> shoes = Registry("shoe")
      >>> shoes.enter("boot", 44, place="a cupboard")
      >>> shoes.named("boot")
      44
    """

    def __init__(self, kind: str):
        super().__init__()
        self.kind, self._places = kind, dict[str, str]()

    def enter(self, name: str, entry: Entry, *, place: str) -> None:
        """Enter `entry` as `name`.

        Args:
          name: by which commands and records call it.
          entry: the method.
          place: module that defines it; entering again from there replaces, as when a notebook runs a cell twice.

        Raises:
          ValueError: if another module has taken the name.
        """
        taken = self._places.setdefault(name, place)
        if taken != place:
            msg = f"there is a {self.kind} {name!r} already, of {taken}; choose another name."
            raise ValueError(msg)
        self[name] = entry

    def named(self, name: str) -> Entry:
        """The entry called `name`.

        Raises:
          ValueError: if there is none; the message lists what there is.
        """
        self.require((name,))
        return self[name]

    def require(self, names: Iterable[str]) -> None:
        """Refuse names that nothing has entered.

        Raises:
          ValueError: naming them, and what there is.
        """
        unknown = [name for name in names if name not in self]
        if unknown:
            msg = f"unknown {self.kind}s: {', '.join(unknown)}; there are {', '.join(self) or 'none'}."
            raise ValueError(msg)


def import_all(package: str, path: Iterable[str]) -> None:
    """Import every module of a package, so that what they define is entered."""
    for module in pkgutil.iter_modules(path):
        import_module(f"{package}.{module.name}")


def import_installed(group: str = "curvjax") -> None:
    """Import the modules that installed packages name in this group of entry points: commands then know their methods.

        [project.entry-points.curvjax]
        mine = "mine.methods"

    Raises:
      ImportError: if one cannot be imported; the message names the package.
    """
    for point in entry_points(group=group):
        try:
            point.load()
        except Exception as error:
            package = point.dist.name if point.dist else point.name
            msg = f"the installed package {package!r} enters methods by {point.value!r}, which fails: {error}"
            raise ImportError(msg) from error
