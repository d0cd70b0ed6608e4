"""A GGUF file of a model whose sizes are no longer those of the file that it came from: layers out, channels, heads.

Where layers differ, the architecture is llama.cpp's `deci`, whose head counts, key head counts and feed-forward lengths
are arrays with an entry for each layer; where they are alike, it stays what it was, with other numbers. Tokenizer,
chat template and positions are the file's; tensors are the model's, in the smallest of float16, bfloat16 and float32
that holds all their values, vectors in float32.

Source: llama.cpp's `src/models/deci.cpp`, which turns channels 2i and 2i + 1 of queries and keys together, adds biases
where there are some, and knows neither windows nor norms of queries and keys.
"""

from dataclasses import replace

import jax.numpy as jnp
import numpy as np
from gguf import GGUFWriter
from gguf.constants import GGMLQuantizationType as Type

from curvjax.models import Decoder, DecoderConfig, config_from_gguf, gguf_tensor, parameters
from curvjax.models.gguf_config import DECI, ROPE_FACTORS
from curvjax.models.gguf_file import GGUFFile

Stored = tuple[Type, np.ndarray]
_ALIKE = ("llama", "mistral", "qwen2", "qwen3")
_APART = ("llama", "mistral", "qwen2")
_NARROW = ((Type.F16, jnp.float16), (Type.BF16, jnp.bfloat16))
_SIZES = ("attention.head_count", "attention.head_count_kv", "attention.key_length", "attention.value_length")
SIZE_KEYS = {"block_count", "feed_forward_length", "rope.dimension_count", *_SIZES}
"""Metadata under the architecture's name that are the model's and not the file's."""


def require_writable(model: Decoder, file: GGUFFile) -> None:
    """Do nothing if a GGUF file can hold the model, as one that was cut out of that in `file`.

    Raises:
      ValueError: if its family or a window has no place there, or more than sizes are others than in `file`.
    """
    config, base = model.config, config_from_gguf(file)
    families = _APART if config.per_layer else _ALIKE
    if config.architecture not in families or any(config.windowed) or config.activation != "silu":
        what = "differ in their sizes" if config.per_layer else "have other sizes than those in the file"
        found = f"{config.architecture}, {config.activation}{', with windows' if any(config.windowed) else ''}"
        msg = f"GGUF files of layers that {what} are of {', '.join(families)} with silu, without windows; got {found}."
        raise ValueError(msg)
    sizes = ("num_layers", "intermediate_size", "num_heads", "num_kv_heads", "intermediate_sizes", "kv_heads")
    alike = replace(base, **{key: getattr(config, key) for key in sizes}, window=None, windowed=())
    if config != replace(alike, architecture=config.architecture):
        msg = f"the model is not cut out of that of {file.path}: more than sizes differ; give the file it came from."
        raise ValueError(msg)


def add_sizes(writer: GGUFWriter, config: DecoderConfig) -> None:
    """Metadata of `SIZE_KEYS`."""
    layers, group = range(config.num_layers), config.num_heads // config.num_kv_heads
    keys, inner = (
        [size(layer) for layer in layers] for size in (config.layer_kv_heads, config.layer_intermediate_size)
    )
    apart = config.per_layer
    writer.add_block_count(config.num_layers)
    writer.add_feed_forward_length(inner if apart else inner[0])
    writer.add_head_count([group * count for count in keys] if apart else group * keys[0])
    writer.add_head_count_kv(keys if apart else keys[0])
    writer.add_key_length(config.head_dim)
    writer.add_value_length(config.head_dim)
    writer.add_rope_dimension_count(config.head_dim)


def written_architecture(config: DecoderConfig, file: GGUFFile) -> str:
    """`general.architecture` of the new file."""
    return DECI if config.per_layer else str(file.metadata["general.architecture"])


def plain_tensors(model: Decoder, file: GGUFFile) -> dict[str, Stored]:
    """Tensors of all that is no code, as `name -> type and rows of bytes`."""
    found = {}
    for path, value in parameters(model).items():
        name, rows = gguf_tensor(path, np.asarray(value, np.float32), model.config)
        found[name] = narrowed(rows)
    if ROPE_FACTORS in file.tensors:
        found[ROPE_FACTORS] = narrowed(file.tensor(ROPE_FACTORS))
    return found


def narrowed(rows: np.ndarray) -> Stored:
    """The smallest type that holds every value, and the bytes; float32 of a vector."""
    for kind, dtype in _NARROW if rows.ndim > 1 else ():
        with np.errstate(over="ignore"):
            small = rows.astype(dtype)
        if np.array_equal(small.astype(np.float32), rows):
            return kind, np.ascontiguousarray(small).view(np.uint8)
    return Type.F32, np.ascontiguousarray(rows, "<f4").view(np.uint8)
