"""A decoder of 12 layers with grouped heads, and adapters on it whose ranks differ in layers 1, 10 and 11."""

import functools

import jax.numpy as jnp
import numpy as np
from flax import nnx

from curvjax.layers import layer_index
from curvjax.models import Decoder, DecoderConfig, Linear
from curvjax.records import Allocation, Budget, ModelOrigin, Origin, UnitAmount
from curvjax.surgery import LoRALinear, constant_scale, projections
from curvjax.surgery.projections import rebuilt

CONFIG = DecoderConfig(
    vocab_size=64,
    hidden_size=32,
    intermediate_size=48,
    num_layers=12,
    num_heads=4,
    num_kv_heads=2,
    head_dim=8,
    max_positions=64,
)
LAYER_RANKS = (2, 1, 2, 2, 2, 0, 2, 2, 2, 2, 3, 5)


def decoder(config: DecoderConfig = CONFIG) -> Decoder:
    return Decoder(config, rngs=nnx.Rngs(1))


def layer_ranks(model: Decoder) -> dict[str, int]:
    """Each layer's rank for all of its projections, and one more for down_proj."""
    paths = [path for path in projections(model) if path.startswith("layers.")]
    return {path: LAYER_RANKS[int(path.split(".")[1])] + path.endswith("down_proj") for path in paths}


def with_adapters(model: Decoder, ranks: dict[str, int], *, scaling=constant_scale, alpha: float = 0.3) -> Decoder:
    """Adapters as if trained: both matrices are random. Drawn by numpy, which compiles nothing for any rank."""
    rng = np.random.default_rng(2)

    def adapter(base: Linear, rank: int) -> LoRALinear:
        inputs, outputs = base.kernel.shape
        lora_a = jnp.asarray(rng.normal(size=(inputs, rank)) * inputs**-0.5, jnp.float32)
        lora_b = jnp.asarray(rng.normal(size=(rank, outputs)) * rank**-0.5, jnp.float32)
        return LoRALinear(base, lora_a, lora_b, scale=scaling(alpha, rank))

    return rebuilt(model, {path: functools.partial(adapter, rank=rank) for path, rank in ranks.items() if rank})


def planned(target: str, amounts: dict[str, int], family: str, projections: list[str], **unit: float) -> Allocation:
    """An allocation of a model of 12 layers of this family; `unit`: what all units have in common."""
    origin = ModelOrigin(name="tiny", sha256="0" * 64, layers=12, family=family, projections=tuple(projections))
    return Allocation(
        target=target,
        units=tuple(
            UnitAmount(name=name, index=layer_index(name), amount=amount, **unit) for name, amount in amounts.items()
        ),
        budget=Budget(requested=0.0, planned=0.0, unit="adapter parameters" if target == "rank" else "weights removed"),
        origin=Origin(model=origin),
        program={},
    )
