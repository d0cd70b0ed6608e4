"""Shared test set-up: float64 at hand, no silent rank promotion, warnings are errors (pyproject.toml).

Compilation is most of the suite's time, and XLA takes its short way, with its older emitters: a third of the time; nor
does it part small programs among threads. Its cache on disk is left out: writing to it was seen to crash (jaxlib
0.10.2), and few programs of a file are compiled twice. Compiled programs are dropped when they hold too many of the
mappings that Linux allows a process (65,530): beyond those, compiling aborts. Tracing makes so many objects that
Python's collector, at its own thresholds, took a tenth of the time. JAX makes a context of MLIR for every program and
keeps it with what it caches, 5 of 20 ms and 1 MB for each operation on a new shape: here a thread has one.
"""

import functools
import gc
import os
import threading
from pathlib import Path

os.environ.setdefault("OPENBLAS_NUM_THREADS", "1")  # workers share the cores: waiting threads of LAPACK cost far more
os.environ.setdefault("JAX_PLATFORMS", "cpu")
os.environ.setdefault(
    "XLA_FLAGS",
    "--xla_backend_optimization_level=0 --xla_llvm_disable_expensive_passes=true --xla_cpu_use_fusion_emitters=false "
    "--xla_cpu_parallel_codegen_split_count=1",
)

import jax
import pytest
from jax._src.interpreters import mlir

if hasattr(mlir, "make_ir_context"):
    _context_of = functools.cache(lambda _thread, make=mlir.make_ir_context: make())
    mlir.make_ir_context = lambda: _context_of(threading.get_ident())

gc.set_threshold(50_000, 10, 10)
jax.config.update("jax_enable_x64", True)
jax.config.update("jax_numpy_rank_promotion", "raise")


def pytest_collection_finish():
    gc.collect()
    gc.freeze()  # what is imported by now stays, and need not be looked through again


@pytest.fixture(autouse=True, scope="module")
def _few_mappings():
    yield
    maps = Path("/proc/self/maps")
    if maps.is_file() and maps.read_bytes().count(b"\n") > 40_000:
        jax.clear_caches()
        gc.collect()
