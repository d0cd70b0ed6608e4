"""An ESTIMATE, from counted FLOPs and bytes, of gains on one GPU. Nothing here is measured; `gpu.py` measures.

Command:   .venv/bin/python -m experiments.benchmarks.gpu_estimate      (seconds; needs all_gains.json)
Models:    SmolLM2-135M in float32, and a Mistral-7B-shaped decoder with weights and activations in bfloat16 and Krylov
           vectors in float32; 4096 tokens in rows of 512.
FLOPs:     `flops.py`. All gains take the passes, one gradient of each layer, and the products.
Products:  per layer as many as all_gains.json needed on average for SmolLM2-135M, 512 tokens, trust radius 2%, at each
           gap. That the other model needs as many is an assumption, as is that 4096 tokens need as many as 512.
Bytes:     a product reads weights and linearisations of its own block and of those above once each way, and the
           readout's; the linearisations' sizes are those that the engine keeps (`jax.eval_shape`, no memory needed).
Seconds:   the larger of FLOPs by the reached share of the peak rate, and bytes by that share of the bandwidth.
GPU:       NVIDIA H200 SXM: bfloat16 989 TFLOP/s (dense; 1979 with sparsity), float32 67 TFLOP/s, 4.8 TB/s, 141 GB.
           Source: NVIDIA H200 Tensor Core GPU datasheet. 40% of either is an assumption, usual for training code.
"""

from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.typing import DTypeLike

from curvjax.curvature import LayeredModel
from curvjax.curvature.linearized import linearize
from curvjax.data import Batch
from curvjax.models import DecoderConfig, abstract_decoder, parameter_shapes
from curvjax.models.layered import layered_model
from curvjax.records import read_json
from experiments.benchmarks import flops
from experiments.benchmarks.measuring import Settings, command, proportioned

ALL_GAINS = Path(__file__).with_name("all_gains.json")


class Case(NamedTuple):
    """A model on a GPU. dtype: of weights and activations. rate: peak FLOPs per second in it."""

    config: DecoderConfig
    dtype: DTypeLike
    rate: float


SMOLLM2 = proportioned(30, width=576, head=64, vocabulary=49152)
MISTRAL = DecoderConfig(
    vocab_size=32000,
    hidden_size=4096,
    intermediate_size=14336,
    num_layers=32,
    num_heads=32,
    num_kv_heads=8,
    head_dim=128,
)
CASES = {"smollm2-135m": Case(SMOLLM2, jnp.float32, 67e12), "mistral-7b": Case(MISTRAL, jnp.bfloat16, 989e12)}
BANDWIDTH, MEMORY = 4.8e12, 141e9


@dataclass(frozen=True, kw_only=True)
class GpuEstimate(Settings):
    """What is assumed."""

    share: float = 0.4
    """Of the peak rate, and of the bandwidth, that is reached."""
    gaps: tuple[float, ...] = (0.1, 0.01)
    """Relative gaps between the bounds, among those of all_gains.json."""
    measured: Path = ALL_GAINS
    """The record that says how many products a gap needs."""


def measure(settings: GpuEstimate) -> dict[str, Any]:
    """Counts, and what they would take."""
    rows = {row["gap"]: row for row in read_json(settings.measured)["gaps"]}
    missing = [gap for gap in settings.gaps if gap not in rows]
    if missing:
        msg = f"{settings.measured} has no gap {missing}, only {sorted(rows)}; measure all_gains with it."
        raise ValueError(msg)
    products = {gap: rows[gap]["products"] / len(rows[gap]["layers"]) for gap in settings.gaps}
    return {
        "is_estimate": True,
        "gpu": "NVIDIA H200 SXM",
        "share_of_peak": settings.share,
        "products_per_layer": products,
        "cases": {name: estimate(case, settings, products) for name, case in CASES.items()},
    }


def estimate(case: Case, settings: GpuEstimate, products: dict[float, float]) -> dict[str, Any]:
    sizes, kept = flops.Sizes(case.config, settings.tokens, settings.length), linearisations(case, settings)
    shapes, width = parameter_shapes(abstract_decoder(case.config)), np.dtype(case.dtype).itemsize
    layer = sum(int(np.prod(shape)) for path, shape in shapes.items() if path.startswith("layers.0."))
    layers, total = case.config.num_layers, sum(int(np.prod(shape)) for shape in shapes.values())
    head = case.config.hidden_size * case.config.vocab_size * width

    def product_bytes(k: int) -> int:
        blocks = (layers - 1 - k) * (layer * width + kept["block"])
        own = layer * (width + 4) + kept["own"]
        return 2 * (blocks + own + head + kept["ends"])

    def spent(number: float, flop: float, byte: float) -> dict[str, Any]:
        compute, traffic = number * flop, number * byte
        seconds = max(compute / (settings.share * case.rate), traffic / (settings.share * BANDWIDTH))
        return {"flops": compute, "bytes": traffic, "seconds": seconds}

    gradient = flops.gradient(sizes)
    once = flops.passes(sizes) + layers * flops.own_gradient(sizes)
    each = sum(flops.product(sizes, k) for k in range(layers)), sum(map(product_bytes, range(layers)))
    one = spent(1, gradient, 3 * total * width)
    found = {}
    for gap, number in products.items():
        whole = spent(number, *each)
        whole["seconds"] += spent(1, once, 3 * total * width)["seconds"]
        found[f"{gap:g}"] = whole | {"gradient_equivalents": whole["seconds"] / one["seconds"]}
    streams = (2 * layers + 1) * settings.tokens * case.config.hidden_size * width
    vectors = 3 * layer * 4
    return {
        "tokens": settings.tokens,
        "parameters": total,
        "gradient": one,
        "all_gains": found,
        "memory_bytes": {
            "weights": total * width,
            "streams": streams,
            "krylov_vectors": vectors,
            "linearisations": layers * kept["block"] + kept["ends"],
            "all": total * width + streams + vectors + layers * kept["block"] + kept["own"] + kept["ends"],
            "all_if_recomputed": total * width + streams + vectors + kept["block"] + kept["own"] + kept["ends"],
            "of_the_gpu": MEMORY,
        },
    }


def linearisations(case: Case, settings: GpuEstimate) -> dict[str, int]:
    """Bytes that the engine keeps of a block in its input, of one in its weights, and of the readout and the loss."""
    model = layered_model(abstract_decoder(case.config, dtype=case.dtype))
    shape = (settings.tokens // settings.length, settings.length)
    ids, ones = (jax.ShapeDtypeStruct(shape, dtype) for dtype in (jnp.int32, jnp.float32))
    batch = Batch(ids, ids, ones, ids, ids)
    x = jax.ShapeDtypeStruct((*shape, case.config.hidden_size), case.dtype)
    functions = {"block": (_block, model.blocks[0]), "own": (_own, model.blocks[0]), "ends": (_ends, model.outer)}
    found = {}
    for name, (function, weights) in functions.items():
        kept = jax.eval_shape(partial(function, model), weights, x, batch)
        found[name] = sum(leaf.size * leaf.dtype.itemsize for leaf in jax.tree.leaves(kept))
    return found


def _block(model: LayeredModel, weights: Any, x: Any, batch: Batch) -> Any:
    return linearize(lambda x: model.loss.block(model.specs[0], weights, x, batch), x, shared=weights)[1]


def _own(model: LayeredModel, weights: Any, x: Any, batch: Batch) -> Any:
    return linearize(lambda w: model.loss.block(model.specs[0], w, x, batch), weights, shared=weights)[1]


def _ends(model: LayeredModel, outer: Any, x: Any, batch: Batch) -> Any:
    z, head = linearize(lambda x: model.loss.readout(outer, x, batch), x, shared=outer)
    return head, linearize(jax.value_and_grad(lambda z: model.loss.loss(z, batch)), z, shared=())[1]


def main(arguments: list[str] | None = None) -> dict[str, Any]:
    return command(measure, GpuEstimate(tokens=4096, length=512), {"tokens": 4096, "length": 512}, arguments)


if __name__ == "__main__":
    main()
