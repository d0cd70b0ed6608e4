"""Shared test set-up: float64 at hand, no silent rank promotion, warnings are errors (pyproject.toml).

Compilation is most of the suite's time, and XLA takes its short way. Its cache on disk would save more, but writing to
it was seen to crash (jaxlib 0.10.2).
"""

import os

os.environ.setdefault("JAX_PLATFORMS", "cpu")
os.environ.setdefault("XLA_FLAGS", "--xla_backend_optimization_level=0 --xla_llvm_disable_expensive_passes=true")

import jax

jax.config.update("jax_enable_x64", True)
jax.config.update("jax_numpy_rank_promotion", "raise")
