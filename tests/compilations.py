"""What JAX compiles while a block of a test runs, by its log: sizes of its caches are private, and were seen at -1."""

import logging
import re
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager

import jax

_LOGGER = logging.getLogger("jax._src.interpreters.pxla")
_COMPILING = "Compiling %s with"


@contextmanager
def compilations() -> Iterator[Counter[str]]:
    """How often each jitted function was compiled in the block, by the function's name."""
    counted: Counter[str] = Counter()

    class Count(logging.Handler):
        def emit(self, record: logging.LogRecord) -> None:
            if str(record.msg).startswith(_COMPILING):
                counted[re.sub(r"^\w+\((.*)\)$", r"\1", str(record.args[0]))] += 1

    handler = Count()
    _LOGGER.addHandler(handler)
    try:
        with jax.log_compiles():
            yield counted
    finally:
        _LOGGER.removeHandler(handler)
