"""Models by path or name, whatever their format."""

from functools import cached_property
from pathlib import Path
from typing import NamedTuple

import jax.numpy as jnp
from jax.typing import DTypeLike

from curvjax.layers import layer_index, module_path, within_layer
from curvjax.models.checkpoint import Restored, is_checkpoint, load_checkpoint
from curvjax.models.config import DecoderConfig
from curvjax.models.decoder import Decoder
from curvjax.models.demo import DEMONSTRATIONS, demonstration_files
from curvjax.models.gguf import decoder_from_gguf
from curvjax.models.gguf_file import read_gguf
from curvjax.models.gguf_tokenizer import tokenizer_from_gguf
from curvjax.models.glassllm import read_glassllm, read_glassllm_tokenizer
from curvjax.models.hf import load_hf
from curvjax.models.hf_files import PICKLES
from curvjax.models.hub import hub_files, is_hub_id
from curvjax.models.parameters import parameters
from curvjax.models.rebuilt import model_hash
from curvjax.models.side_files import SideFiles, read_side_files, side_files_from_gguf
from curvjax.models.tokenizer import BeginOfText, Tokenizer, fitted_tokenizer, load_tokenizer
from curvjax.records import ModelOrigin

_ACCEPTED = (
    "A model is a Hugging Face directory (config.json, safetensors, tokenizer.json), a .gguf file, a checkpoint saved "
    "by curvjax, hf:owner/name[@revision] of the Hub, or the name of an installed demonstration model: "
    f"{', '.join(DEMONSTRATIONS)}."
)


class _Loaded(NamedTuple):
    model: Decoder
    tokenizer: Tokenizer
    config: DecoderConfig
    name: str
    beside: SideFiles = SideFiles()
    revision: str = ""


class Loaded(_Loaded):
    """A model ready for use.

    config: `model.config`. name: of the demonstration, file or directory, or owner/name. beside: what lay beside the
    weights, for whoever writes the model again. revision: commit of a model of the Hub; "" of others.

    Example:
      >>> from curvjax.testing import tiny_model
      >>> loaded = tiny_model(layers=2)
      >>> loaded.name, loaded.origin.layers
      ('tiny', 2)
    """

    @cached_property
    def origin(self) -> ModelOrigin:
        """By which records name the model; hashed once."""
        values = parameters(self.model)
        kernels = [module_path(path) for path in values if layer_index(path) >= 0 and path.endswith(".kernel")]
        return ModelOrigin(
            name=self.name,
            sha256=model_hash(self.model),
            parameters=sum(value.size for value in values.values()),
            layers=len(self.model.layers),
            family=self.config.architecture,
            projections=tuple(dict.fromkeys(map(within_layer, kernels))),
            revision=self.revision,
        )

    @property
    def sha256(self) -> str:
        """Of all that the model computes with."""
        return self.origin.sha256


def load_model(path: str | Path, *, dtype: DTypeLike = jnp.float32, begin_of_text: BeginOfText = "tokenizer") -> Loaded:
    """A model and its tokenizer, from a file, a directory or an installed package.

    Args:
      path: a Hugging Face directory (config.json, safetensors, tokenizer.json), a GGUF file, a checkpoint of
        `save_checkpoint`, `hf:owner/name[@revision]` of the Hub (`pip install 'curvjax[hf]'`: safetensors, JSON and
        tokenizer files go into its client's cache), or the name of an installed demonstration model. Write `./name` for
        a directory that is called like one.
      dtype: of all parameters, whatever the file has.
      begin_of_text: "tokenizer": texts begin with what the tokenizer puts before them, mostly `<bos>` or nothing;
        "always": with its first token, asked for or not; "never": with nothing. Everything that reads texts with this
        tokenizer follows it.

    Returns:
      Model, tokenizer, configuration, name and origin.

    Raises:
      FileNotFoundError: if there is nothing at `path`, or the Hub cannot give it.
      ModuleNotFoundError: without the Hub's client, where `path` is an id.
      ValueError: if what is there is of no known kind, damaged, or its tokenizer does not belong to its model.

    Example:
      >>> import curvjax as cj
      >>> cj.load_model("glassllm").name
      'glassllm'
    """
    revision = ""
    if isinstance(path, str) and path in DEMONSTRATIONS:
        name = path
        model, tokenizer, beside = _demonstration(name, dtype)
    elif is_hub_id(path):
        directory, name, revision = hub_files(str(path))
        model, tokenizer, beside = _stored(directory, dtype)
    else:
        name = Path(path).resolve().name
        model, tokenizer, beside = _stored(Path(path), dtype)
    rows = model.config.vocab_size
    tokenizer = fitted_tokenizer(tokenizer, vocab_size=rows, source=path, begin_of_text=begin_of_text)
    return Loaded(model, tokenizer, model.config, name, beside, revision)


def _demonstration(name: str, dtype: DTypeLike) -> Restored:
    files = demonstration_files(name)
    if name == "glassllm":
        weights, vocabulary = files
        return Restored(read_glassllm(weights, dtype=dtype), read_glassllm_tokenizer(vocabulary), SideFiles())
    return _stored(files[0], dtype)


def _stored(path: Path, dtype: DTypeLike) -> Restored:
    if path.suffix == ".gguf":
        file = read_gguf(path)
        tokenizer = tokenizer_from_gguf(file.metadata, source=path)
        return Restored(decoder_from_gguf(file, dtype=dtype), tokenizer, side_files_from_gguf(file.metadata, tokenizer))
    if is_checkpoint(path):
        return load_checkpoint(path, dtype=dtype)
    pickled = path.is_file() and path.suffix in PICKLES  # load_hf refuses these, with the reason
    if pickled or (path / "config.json").is_file():
        model = load_hf(path, dtype=dtype).model
        return Restored(model, load_tokenizer(path), read_side_files(path, model.config))
    if not path.exists():
        msg = f"{path}: no such file or directory. {_ACCEPTED}"
        raise FileNotFoundError(msg)
    msg = f"{path}: neither a model file nor a model directory. {_ACCEPTED}"
    raise ValueError(msg)
