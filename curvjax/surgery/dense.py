"""The plain decoder that computes what a rebuilt one does, where there is one."""

from typing import TypeVar

from flax import nnx

from curvjax.surgery.experts import LoRAExperts
from curvjax.surgery.factorize import merge_factors
from curvjax.surgery.lora import merge_lora
from curvjax.surgery.projections import submodules
from curvjax.surgery.quantize import dequantized
from curvjax.surgery.upcycle import ExpertMLP

Module = TypeVar("Module", bound=nnx.Module)


def dense_equivalent(model: Module) -> Module:
    """A copy of `model` with ordinary kernels in place of adapters, factors and codes, and equal logits up to rounding.

    Layers, channels and heads that are gone stay gone.

    Raises:
      ValueError: if there are mixtures of experts, which no dense model equals.
    """
    mixtures = [path for path, child in submodules(model).items() if isinstance(child, ExpertMLP | LoRAExperts)]
    if mixtures:
        msg = (
            f"{len(mixtures)} modules are mixtures of experts, e.g. {mixtures[0]}; they depend on their input, so that "
            "no dense model equals them: keep the checkpoint."
        )
        raise ValueError(msg)
    return dequantized(merge_factors(merge_lora(model)))
