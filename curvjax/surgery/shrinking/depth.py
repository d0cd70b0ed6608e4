"""Whole layers out of a decoder: the residual stream goes past them.

Source: Men et al., "ShortGPT: Layers in Large Language Models are More Redundant Than You Expect", 2024; Gromov et al.,
"The Unreasonable Ineffectiveness of the Deeper Layers", 2024. Which layers go is the caller's choice.
"""

import dataclasses
from collections.abc import Collection

from curvjax.layers import layer_index, layer_prefix
from curvjax.models import Decoder, DecoderConfig, abstract_decoder, parameters, require_plain, with_parameters
from curvjax.surgery.shrinking.structured import with_channels, with_kv_heads


def drop_layers(model: Decoder, dropped: Collection[int]) -> Decoder:
    """A copy of `model` without some layers, the others renumbered from 0 in their order; arrays are shared.

    What the config says for each layer (windows, sizes) goes along with it; layers left alike are a plain model's.

    Args:
      model: a plain decoder.
      dropped: indices of the layers to remove.

    Returns:
      A decoder like any other: `save_hf` writes it.

    Raises:
      ValueError: if an index is not that of a layer, no layer would be left, or the model is not plain.
    """
    require_plain(model)
    layers = range(model.config.num_layers)
    unknown = sorted(set(dropped) - set(layers))
    if unknown:
        msg = f"layers {unknown} cannot be dropped: the model's are 0 to {layers[-1]}."
        raise ValueError(msg)
    stay = [layer for layer in layers if layer not in dropped]
    if not stay:
        msg = f"all {len(layers)} layers would be dropped; leave at least one."
        raise ValueError(msg)
    values = {
        renumbered(path, dropped): value
        for path, value in parameters(model).items()
        if layer_index(path) not in dropped
    }
    return with_parameters(abstract_decoder(_remaining(model.config, stay)), values)


def renumbered(name: str, dropped: Collection[int]) -> str:
    """The name that a layer, or something in it, has once the layers `dropped` are gone; others keep theirs.

    Args:
      name: dotted, such as `layers.3.mlp`; in none of the layers dropped.
      dropped: indices of the layers removed.

    Returns:
      `layers.2.mlp`, if one layer before it is dropped.

    Raises:
      ValueError: if `name` lies in a layer that is dropped.
    """
    index = layer_index(name)
    if index < 0:
        return name
    if index in dropped:
        msg = f"{name} is in a layer that is dropped: {sorted(dropped)}."
        raise ValueError(msg)
    return layer_prefix(index - sum(layer < index for layer in set(dropped))) + name.removeprefix(layer_prefix(index))


def _remaining(config: DecoderConfig, stay: list[int]) -> DecoderConfig:
    windowed, sizes, heads = (
        tuple(entries[layer] for layer in stay) if entries else ()
        for entries in (config.windowed, config.intermediate_sizes, config.kv_heads)
    )
    config = dataclasses.replace(
        config, num_layers=len(stay), windowed=windowed, intermediate_sizes=sizes, kv_heads=heads
    )
    config = with_channels(config, sizes) if sizes else config
    config = with_kv_heads(config, heads) if heads else config
    if any(windowed):
        return config
    return dataclasses.replace(config, window=None, windowed=())  # config.json cannot say a window that no layer has
