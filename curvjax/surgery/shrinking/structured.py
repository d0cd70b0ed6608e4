"""Whole MLP channels and attention heads: projections really shrink.

A key head goes with the query heads that it serves, so that grouped attention stays grouped evenly. Where all layers
end up alike, the copy is an ordinary decoder that `save_hf` writes and transformers loads, if the family's config.json
has a head_dim of its own (GPT-2's and OPT's have none, so there only channels can go). Where layers differ, config.json
has no way to say so: `save_hf` refuses, and a checkpoint is the format.

Source: An et al., "Fluctuation-based Adaptive Structured Pruning for Large Language Models" (FLAP), 2023, section 5.1:
the baseline Wanda-sp. Ours takes the number for each layer as given.
"""

import dataclasses
from collections.abc import Mapping
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int

from curvjax.layers import layer_prefix
from curvjax.models import Decoder, DecoderConfig, abstract_decoder, parameters, require_plain, with_parameters
from curvjax.surgery.sequential import require_finite_statistic


class Shrunk(NamedTuple):
    """model: the copy. kept: per layer that was cut, indices of what stays, in order: channels, or key heads."""

    model: Decoder
    kept: dict[str, Int[np.ndarray, " N"]]


def prune_channels(model: Decoder, energies: Mapping[str, jax.Array], removed: Mapping[str, int]) -> Shrunk:
    """A copy of `model` without the MLP channels that `input_scores` of down_proj puts last.

    Args:
      model: a plain decoder.
      energies: `module path -> [in]` sum of squares of each input feature; see `input_energies`.
      removed: `layer -> number of channels`, such as `{"layers.3": 100}`; other layers stay as they are.

    Returns:
      The smaller copy and the channels that stay.

    Raises:
      KeyError: if a layer is unknown or `energies` lacks its down_proj.
      ValueError: if a layer would be left without channels, a number is negative, an energy is not finite, or the model
        is not plain.
    """
    require_plain(model)
    sizes = _remaining(removed, [block.mlp.down_proj.kernel.shape[0] for block in model.layers], "channels")
    values, kept = parameters(model), {}
    for layer in removed:
        score = _scores(f"{layer}.mlp.down_proj", values, energies)
        kept[layer] = stay = _best(score, sizes[layer])
        values |= _columns(values, [f"{layer}.mlp.{name}" for name in ("gate_proj", "up_proj")], stay)
        values |= _rows(values, f"{layer}.mlp.down_proj", stay)
    config = with_channels(model.config, tuple(sizes.values()))
    return Shrunk(with_parameters(abstract_decoder(config), values), kept)


def prune_heads(model: Decoder, energies: Mapping[str, jax.Array], removed: Mapping[str, int]) -> Shrunk:
    """A copy of `model` without the key heads, each with its query heads, that `input_scores` of o_proj puts last.

    A group's score is the sum over the inputs of o_proj that its query heads write.

    Args:
      model: a plain decoder.
      energies: `module path -> [in]` sum of squares of each input feature; see `input_energies`.
      removed: `layer -> number of key heads`, such as `{"layers.3": 1}`; other layers stay as they are.

    Returns:
      The smaller copy and the key heads that stay.

    Raises:
      KeyError: if a layer is unknown or `energies` lacks its o_proj.
      ValueError: if a layer would be left without heads, a number is negative, an energy is not finite, or the model
        is not plain.
    """
    require_plain(model)
    config = model.config
    heads = {layer_prefix(index): block.self_attn.num_kv_heads for index, block in enumerate(model.layers)}
    sizes = _remaining(removed, list(heads.values()), "key heads")
    group = config.num_heads // config.num_kv_heads * config.head_dim
    values, kept = parameters(model), {}
    for layer in removed:
        score = _scores(f"{layer}.self_attn.o_proj", values, energies)
        kept[layer] = stay = _best(score.reshape(heads[layer], group).sum(axis=1), sizes[layer])
        queries, keys = (_features(stay, width) for width in (group, config.head_dim))
        values |= _columns(values, [f"{layer}.self_attn.q_proj"], queries)
        values |= _columns(values, [f"{layer}.self_attn.{name}" for name in ("k_proj", "v_proj")], keys)
        values |= _rows(values, f"{layer}.self_attn.o_proj", queries)
    config = with_kv_heads(config, tuple(sizes.values()))
    return Shrunk(with_parameters(abstract_decoder(config), values), kept)


def input_scores(kernel: Float[Array, "I O"], energy: Float[Array, " I"]) -> Float[Array, " I"]:
    """|x_i| sum_o |W_io|: what each input of a projection may add to its outputs, on the scale of Wanda.

    Args:
      kernel: `[in, out]`.
      energy: `[in]` sum of squares of each input feature.

    Returns:
      `[in]`, non-negative.
    """
    return jnp.sqrt(energy) * jnp.sum(jnp.abs(kernel.astype(energy.dtype)), axis=1)


def _remaining(removed: Mapping[str, int], sizes: list[int], what: str) -> dict[str, int]:
    """What each layer of the model is left with."""
    found = {layer_prefix(index): size for index, size in enumerate(sizes)}
    unknown = sorted(removed.keys() - found.keys())
    if unknown:
        msg = f"{unknown[:3]} are not among the model's {len(sizes)} layers, layers.0 to layers.{len(sizes) - 1}."
        raise KeyError(msg)
    for layer, count in removed.items():
        if not 0 <= count < found[layer]:
            msg = f"{layer} has {found[layer]} {what}; 0 to {found[layer] - 1} of them can go, not {count}."
            raise ValueError(msg)
    return {layer: size - removed.get(layer, 0) for layer, size in found.items()}


def _scores(path: str, values: Mapping[str, jax.Array], energies: Mapping[str, jax.Array]) -> np.ndarray:
    if path not in energies:
        msg = f"energies lack {path}; take them from input_energies of the same model."
        raise KeyError(msg)
    require_finite_statistic(path, energies[path])
    return np.asarray(input_scores(values[f"{path}.kernel"], energies[path]))


def _best(score: np.ndarray, count: int) -> np.ndarray:
    """Indices of the `count` highest, in order; of equal ones the later stay."""
    return np.sort(np.argsort(score, kind="stable")[len(score) - count :])


def _features(groups: np.ndarray, width: int) -> np.ndarray:
    return (groups[:, None] * width + np.arange(width)[None, :]).reshape(-1)


def _columns(values: Mapping[str, jax.Array], paths: list[str], stay: np.ndarray) -> dict[str, jax.Array]:
    """Kernels and biases of projections with only the outputs `stay`; those that the model lacks are left out."""
    names = [f"{path}.{part}" for path in paths for part in ("kernel", "bias")]
    return {name: jnp.take(values[name], stay, axis=-1) for name in names if name in values}


def _rows(values: Mapping[str, jax.Array], path: str, stay: np.ndarray) -> dict[str, jax.Array]:
    return {f"{path}.kernel": jnp.take(values[f"{path}.kernel"], stay, axis=0)}


def with_channels(config: DecoderConfig, sizes: tuple[int, ...]) -> DecoderConfig:
    """Layers with so many channels each; where all have as many, that is the model's number."""
    if len(set(sizes)) > 1:
        return dataclasses.replace(config, intermediate_sizes=sizes)
    return dataclasses.replace(config, intermediate_size=sizes[0], intermediate_sizes=())


def with_kv_heads(config: DecoderConfig, sizes: tuple[int, ...]) -> DecoderConfig:
    """Layers with so many key heads each, and their query heads; where all have as many, that is the model's number."""
    if len(set(sizes)) > 1:
        return dataclasses.replace(config, kv_heads=sizes)
    heads = config.num_heads // config.num_kv_heads * sizes[0]
    return dataclasses.replace(config, num_heads=heads, num_kv_heads=sizes[0], kv_heads=())
