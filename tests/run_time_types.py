"""The type checker of `make test-types`: beartype, but for hints that cannot be checked where they stand."""

from collections.abc import Callable
from typing import TypeVar

from beartype import BeartypeConf, beartype
from beartype.roar import BeartypeDecorHintException

_CONF = BeartypeConf(is_pep484_tower=True)  # an int is a float, as for static checkers

F = TypeVar("F", bound=Callable)


def checked(function: F) -> F:
    """`function` with its annotations checked at each call; as it is where one is `Self`, or a class of a protocol."""
    try:
        return beartype(conf=_CONF)(function)
    except BeartypeDecorHintException:  # methods are decorated one by one, and `issubclass` refuses such protocols
        return function
