"""Models by path or name, whatever their format."""

from pathlib import Path
from typing import NamedTuple

import jax.numpy as jnp
from jax.typing import DTypeLike

from curvjax.models.checkpoint import Restored, is_checkpoint, load_checkpoint
from curvjax.models.config import DecoderConfig
from curvjax.models.decoder import Decoder
from curvjax.models.demo import DEMONSTRATIONS, demonstration_files
from curvjax.models.gguf import decoder_from_gguf
from curvjax.models.gguf_file import read_gguf
from curvjax.models.glassllm import read_glassllm, read_glassllm_tokenizer
from curvjax.models.hf import load_hf
from curvjax.models.origin import Origin, origin_from_gguf, read_origin
from curvjax.models.tokenizer import Tokenizer, check_vocabulary, load_tokenizer, tokenizer_from_gguf

_ACCEPTED = (
    "A model is a Hugging Face directory (config.json, safetensors, tokenizer.json), a .gguf file, a checkpoint saved "
    f"by curvjax, or the name of an installed demonstration model: {', '.join(DEMONSTRATIONS)}."
)
_PICKLES = (".bin", ".pt", ".pth", ".pkl", ".pickle", ".ckpt")


class Loaded(NamedTuple):
    """A model ready for use.

    config: `model.config`. name: of the demonstration, file or directory. origin: what lay beside the weights, for
    whoever writes the model again.
    """

    model: Decoder
    tokenizer: Tokenizer
    config: DecoderConfig
    name: str
    origin: Origin = Origin()


def load_model(path: str | Path, *, dtype: DTypeLike = jnp.float32) -> Loaded:
    """A model and its tokenizer, from a file, a directory or an installed package.

    Args:
      path: a Hugging Face directory (config.json, safetensors, tokenizer.json), a GGUF file, a checkpoint of
        `save_checkpoint`, or the name of an installed demonstration model. Write `./name` for a directory that is
        called like one.
      dtype: of all parameters, whatever the file has.

    Returns:
      Model, tokenizer, configuration, name and origin.

    Raises:
      FileNotFoundError: if there is nothing at `path`.
      ValueError: if what is there is of no known kind, damaged, or its tokenizer does not belong to its model.
    """
    if isinstance(path, str) and path in DEMONSTRATIONS:
        name = path
        model, tokenizer, origin = _demonstration(name, dtype)
    else:
        name = Path(path).resolve().name
        model, tokenizer, origin = _stored(Path(path), dtype)
    check_vocabulary(tokenizer, vocab_size=model.config.vocab_size, source=path)
    return Loaded(model, tokenizer, model.config, name, origin)


def _demonstration(name: str, dtype: DTypeLike) -> Restored:
    files = demonstration_files(name)
    if name == "glassllm":
        weights, vocabulary = files
        return Restored(read_glassllm(weights, dtype=dtype), read_glassllm_tokenizer(vocabulary), Origin())
    return _stored(files[0], dtype)


def _stored(path: Path, dtype: DTypeLike) -> Restored:
    if path.suffix == ".gguf":
        file = read_gguf(path)
        tokenizer = tokenizer_from_gguf(file.metadata, source=path)
        return Restored(decoder_from_gguf(file, dtype=dtype), tokenizer, origin_from_gguf(file.metadata, tokenizer))
    if is_checkpoint(path):
        return load_checkpoint(path, dtype=dtype)
    pickled = path.is_file() and path.suffix in _PICKLES  # load_hf refuses these, with the reason
    if pickled or (path / "config.json").is_file():
        model = load_hf(path, dtype=dtype).model
        return Restored(model, load_tokenizer(path), read_origin(path, model.config))
    if not path.exists():
        msg = f"{path}: no such file or directory. {_ACCEPTED}"
        raise FileNotFoundError(msg)
    msg = f"{path}: neither a model file nor a model directory. {_ACCEPTED}"
    raise ValueError(msg)
