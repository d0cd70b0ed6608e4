"""What a gradient of a descent keeps in memory, counted by the compiler: a 7B shape on one 80 GB card.

Command:   .venv/bin/python -m experiments.benchmarks.prices_memory      (a minute; nothing of the size is allocated)
Ours:      the step that adds one microbatch's gradient of the divergence to the sum, compiled for a Mistral-7B-shaped
           decoder in float32 with abstract arrays; plus the dense model, which gave the predictions and stays.
Counted:   arguments, outputs that share no argument's memory, and temporaries, by `memory_analysis` of the compiled
           program, on CPU: it has no products in bfloat16 and widens them, so bfloat16 is taken as half of float32.
Expected:  at most 3 times the weights and the activations: the model, the dense one, and the sum; below 80 GB in
           bfloat16.
"""

import math
from dataclasses import dataclass, replace
from typing import Any

import jax
import jax.numpy as jnp
from flax import nnx

from curvjax.data import Batch
from curvjax.models import abstract_decoder, parameter_shapes
from curvjax.models.layered import layered_model
from curvjax.runs.objective import Part, added_gradient
from experiments.benchmarks.gpu_estimate import MISTRAL
from experiments.benchmarks.measuring import Settings, command


@dataclass(frozen=True, kw_only=True)
class PricesMemory(Settings):
    """At which size."""

    rows: int = 1
    """In memory at a time."""
    layers: int = 32
    """Of the decoder."""


def measure(settings: PricesMemory) -> dict[str, Any]:
    """Bytes of each."""
    config = replace(MISTRAL, num_layers=settings.layers)
    model = abstract_decoder(config, dtype=jnp.float32)
    graph, state = nnx.split(model)
    dense = layered_model(model)

    def places(dtype: Any) -> jax.ShapeDtypeStruct:
        return jax.ShapeDtypeStruct((settings.rows, settings.length), dtype)

    whole = places(jnp.int32)
    batch = Batch(tokens=whole, targets=whole, weights=places(jnp.float32), positions=whole, segments=whole)
    stream = jax.ShapeDtypeStruct((*whole.shape, config.hidden_size), jnp.float32)
    step = added_gradient.lower(graph, dense.loss, dense.outer, state, state, Part(batch, stream))
    counted = step.compile().memory_analysis()
    weights = 4 * sum(math.prod(shape) for shape in parameter_shapes(model).values())
    outer = sum(x.size * 4 for x in jax.tree.leaves(dense.outer))
    fresh = counted.output_size_in_bytes - counted.alias_size_in_bytes
    peak = counted.argument_size_in_bytes - outer + fresh + counted.temp_size_in_bytes + weights
    return {
        "parameters": weights // 4,
        "bytes": {
            "weights": weights,
            "arguments": counted.argument_size_in_bytes,
            "temporaries": counted.temp_size_in_bytes,
            "peak_float32": peak,
            "peak_bfloat16": peak // 2,
        },
        "over_weights": peak / weights,
    }


def main(arguments: list[str] | None = None) -> dict[str, Any]:
    return command(measure, PricesMemory(), {"layers": 2}, arguments)


if __name__ == "__main__":
    main()
