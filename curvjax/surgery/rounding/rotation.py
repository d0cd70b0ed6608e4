"""A residual stream in another orthonormal basis: the same logits, and weights without outlying inputs.

Source: Ashkboos et al., "QuaRot: Outlier-Free 4-Bit Inference in Rotated LLMs", 2024, arXiv 2404.00456, section 4,
stage 1a and the half of 1c that needs nothing at run time.
"""

import dataclasses
from collections.abc import Mapping
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Float

from curvjax.layers import layer_index, layer_prefix, within_layer
from curvjax.models import Decoder, DecoderConfig, abstract_decoder, parameters, require_plain, with_parameters

_READERS = {
    **{f"self_attn.{name}": "input_layernorm" for name in ("q_proj", "k_proj", "v_proj")},
    **{f"mlp.{name}": "post_attention_layernorm" for name in ("gate_proj", "up_proj")},
}
_WRITERS = ("self_attn.o_proj", "mlp.down_proj")


class Bases(NamedTuple):
    """Orthonormal. stream: `[D, D]`, Q of the residual stream. head: `[h, h]`, U of the values of a head."""

    stream: Float[np.ndarray, "D D"]
    head: Float[np.ndarray, "h h"]


def rotated(model: Decoder, *, seed: int) -> Decoder:
    """A copy of a decoder whose residual stream x' is in another basis, x' = x Q, with equal logits.

    As x / rms(x) turns with x once the gains of norms are in the kernels after them, with Q of `randomised_hadamard`
    over the width and U of the same over the values of a head

        E' = E Q,   W' = Q' diag(g) W  (reads the stream),   W' = W Q,  b' = b Q  (writes it),   all norm gains 1,
        W_v' = W_v U,  W_o' = U' W_o  (in each head),   W_head' = Q' diag(g_final) W_head.

    A tied head becomes a matrix of its own: its gain cannot be in the embedding, which reads tokens without it. Only
    what is folded into weights is done: no rotation of queries, keys or MLP channels, which would cost products at run
    time. Computed in float64 on the host and stored in each parameter's dtype, so that logits are equal to rounding.

    Args:
      model: a decoder of plain projections, with RMS norms before attention and MLP.
      seed: of the signs, and of the odd factor of Q.

    Returns:
      The copy; its config says that the head is not tied.

    Raises:
      ValueError: if the norms do not let a rotation pass, or modules are not plain.
    """
    _require_turnable(model.config)
    require_plain(model)
    config, rng = dataclasses.replace(model.config, tied=False), np.random.default_rng(seed)
    bases = Bases(randomised_hadamard(config.hidden_size, rng), randomised_hadamard(config.head_dim, rng))
    held = parameters(model)
    new = _turned_ends(_wide({path: held[path] for path in held if layer_index(path) < 0}), model.config, bases)
    for layer in range(config.num_layers):
        inside = {within_layer(path): held[path] for path in held if layer_index(path) == layer}
        turned = _turned(_wide(inside), config, bases)
        new |= {f"{layer_prefix(layer)}.{path}": array for path, array in turned.items()}
    gains = {path: jnp.full_like(array, 1.0 - config.norm_offset) for path, array in held.items() if _is_gain(path)}
    dtypes = {path: array.dtype for path, array in held.items()}
    head = dtypes["embed_tokens.embedding"]
    stored = {path: jnp.asarray(array, dtypes.get(path, head)) for path, array in new.items()}
    return with_parameters(abstract_decoder(config), held | gains | stored)


def randomised_hadamard(size: int, rng: np.random.Generator) -> Float[np.ndarray, "D D"]:
    """A random orthonormal matrix that spreads every direction over all others.

    diag(random signs) (H_p kron O_m) / sqrt(p), for size = p m with p the largest power of two, H_p Sylvester's matrix
    of +-1 and O_m a uniformly random rotation of the odd factor. Where m = 1 it is the randomised Hadamard matrix; the
    published program takes for m a stored Hadamard matrix of order 4 m or more where it has one.
    """
    power = size & -size
    hadamard = np.ones((1, 1))
    while len(hadamard) < power:
        hadamard = np.block([[hadamard, hadamard], [hadamard, -hadamard]])
    odd, triangle = np.linalg.qr(rng.normal(size=(size // power, size // power)))
    uniform = odd * np.sign(np.diagonal(triangle))[None, :]
    return rng.choice([-1.0, 1.0], size)[:, None] * np.kron(hadamard / np.sqrt(power), uniform)


def _require_turnable(config: DecoderConfig) -> None:
    wrong = {
        "norms over deviations from the mean (norm='layer')": config.norm != "rms",
        "norms after attention and MLP (pre_norm=False)": not config.pre_norm,
        "norms of what attention and MLP add (sandwich_norm=True)": config.sandwich_norm,
    }
    if any(wrong.values()):
        found = ", ".join(what for what, there in wrong.items() if there)
        msg = f"the residual stream can be rotated between RMS norms alone; this model has {found}: leave rotation out."
        raise ValueError(msg)


def _is_gain(path: str) -> bool:
    return path == "norm.scale" or path.endswith(("input_layernorm.scale", "post_attention_layernorm.scale"))


def _wide(arrays: Mapping[str, jax.Array]) -> dict[str, np.ndarray]:
    return {path: np.asarray(array, np.float64) for path, array in arrays.items()}


def _turned_ends(wide: Mapping[str, np.ndarray], config: DecoderConfig, bases: Bases) -> dict[str, np.ndarray]:
    """Embeddings and the head."""
    new = {path: array @ bases.stream for path, array in wide.items() if path.endswith(".embedding")}
    head = wide["embed_tokens.embedding"].T if config.tied else wide["lm_head.kernel"]
    gain = config.norm_offset + wide["norm.scale"] if config.final_norm else np.ones(config.hidden_size)
    return new | {"lm_head.kernel": bases.stream.T @ (gain[:, None] * head)}


def _turned(wide: Mapping[str, np.ndarray], config: DecoderConfig, bases: Bases) -> dict[str, np.ndarray]:
    """A layer's projections, by path within the layer, with the biases that turn."""
    new = {}
    for path, norm in _READERS.items():
        if f"{path}.kernel" in wide:
            gain = config.norm_offset + wide[f"{norm}.scale"]
            new[f"{path}.kernel"] = bases.stream.T @ (gain[:, None] * wide[f"{path}.kernel"])
    for path in _WRITERS:
        new |= {name: wide[name] @ bases.stream for name in (f"{path}.kernel", f"{path}.bias") if name in wide}
    for name in ("self_attn.v_proj.kernel", "self_attn.v_proj.bias"):
        if name in wide:
            values = new.get(name, wide[name])
            new[name] = (values.reshape(-1, config.head_dim) @ bases.head).reshape(values.shape)
    out = new["self_attn.o_proj.kernel"]
    heads = out.reshape(-1, config.head_dim, config.hidden_size)
    return new | {"self_attn.o_proj.kernel": (bases.head.T @ heads).reshape(out.shape)}
