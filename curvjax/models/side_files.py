"""What a model came with beside its weights, kept so that a rebuilt model has it too.

A directory's tokenizer files, chat templates and generation settings are carried byte for byte, its config.json entry
by entry, and each tensor goes back into the dtype it was stored in. A GGUF file says the same things in its metadata;
they are written as transformers reads them.
"""

import base64
import json
import re
from collections.abc import Mapping
from pathlib import Path
from types import MappingProxyType
from typing import Any, NamedTuple

import jax.numpy as jnp
import numpy as np

from curvjax.models.config import DecoderConfig
from curvjax.models.decoder import Decoder
from curvjax.models.hf_config import MULTIMODAL, config_from_hf, config_to_hf
from curvjax.models.hf_defaults import HARMLESS
from curvjax.models.hf_files import stored_tensors
from curvjax.models.hf_names import place, plain_name, prefix
from curvjax.models.parameters import parameters, with_parameters
from curvjax.models.rebuilt import rebuilt_modules
from curvjax.models.tokenizer import Tokenizer, tokenizer_config

FILES = (  # by pattern: what turns text and messages into ids, and what writing of text starts from
    "tokenizer.json",
    "tokenizer_config.json",
    "special_tokens_map.json",
    "added_tokens.json",
    "vocab.json",
    "vocab.txt",
    "merges.txt",
    "tokenizer.model",
    "*.tiktoken",
    "chat_template.jinja",
    "chat_template.json",
    "additional_chat_templates/*.jinja",
    "generation_config.json",
)
_DTYPES = {"F64": "float64", "F32": "float32", "F16": "float16", "BF16": "bfloat16"}
_NOT_CARRIED = {  # entries of config.json, once layers or channels went
    "auto_map",  # names code that is not carried
    "rope_parameters",  # v5's form of two entries that are written
    "layer_types",  # one for each layer; written where layers differ
}
_OF_BOTH = ("tie_word_embeddings", "eos_token_id")  # of a multimodal model: what is outside counts for its text
_HEAD, _TABLE = "lm_head.weight", "embed_tokens.embedding"
_LAYER = re.compile(r"\.\d+\.")
_TEMPLATE = "tokenizer.chat_template"
_GGUF_TOKENS = {
    "bos": "bos",
    "eos": "eos",
    "unk": "unknown",
    "sep": "seperator",  # so spelled in the format
    "pad": "padding",
    "cls": "cls",
    "mask": "mask",
}
_LEAVES = {"kernel", "scale", "embedding", "bias"}  # what a plain decoder has; factors and adapters have others
_NOTHING: Mapping[str, Any] = MappingProxyType({})


class SideFiles(NamedTuple):
    """What lay beside a model's weights; empty where nothing did.

    files: content by path in the directory, with forward slashes. config: entries of config.json. dtypes: of stored
    tensors by their name without the family's prefix, every layer's number a `*`; those of one dtype in all layers.
    """

    files: Mapping[str, bytes] = _NOTHING
    config: Mapping[str, Any] = _NOTHING
    dtypes: Mapping[str, str] = _NOTHING


def read_side_files(directory: str | Path, config: DecoderConfig) -> SideFiles:
    """What lies beside the weights in a Hugging Face directory.

    Args:
      directory: that `load_hf` read.
      config: what it says of the model.

    Returns:
      Files as they are, whole; links are followed. Dtypes are those of the files that `load_hf` reads, and of no others
      that lie there.

    Raises:
      FileNotFoundError: if there are no weights, or a shard is absent.
      ValueError: if they are pickled, a file is damaged, or the index does not tell what the shards hold.
    """
    directory = Path(directory)
    paths = sorted({path for pattern in FILES for path in directory.glob(pattern) if path.is_file()})
    files = {path.relative_to(directory).as_posix(): path.read_bytes() for path in paths}
    entries = json.loads((directory / "config.json").read_text(encoding="utf-8"))
    stored = {plain_name(name).removeprefix(prefix(config)): at.dtype for name, at in stored_tensors(directory).items()}
    if config.tied and _HEAD in stored:  # either copy of the one table
        stored.setdefault(place(config, _TABLE).name, stored[_HEAD])
    found: dict[str, set[str]] = {}
    for name, dtype in stored.items():
        found.setdefault(_kind(name), set()).add(dtype)
    one = {name: dtypes.pop() for name, dtypes in found.items() if len(dtypes) == 1}
    return SideFiles(files, entries, {name: _DTYPES[dtype] for name, dtype in one.items() if dtype in _DTYPES})


def side_files_from_gguf(metadata: Mapping[str, Any], tokenizer: Tokenizer) -> SideFiles:
    """The metadata of a GGUF file as files of a Hugging Face directory: special tokens, chat templates, where to stop.

    Args:
      metadata: of `read_gguf`.
      tokenizer: of `tokenizer_from_gguf`.

    Returns:
      tokenizer.json, tokenizer_config.json and generation_config.json; no dtypes, for blocks of codes have none.
    """
    ids = {name: metadata.get(f"tokenizer.ggml.{key}_token_id") for name, key in _GGUF_TOKENS.items()}
    named = {f"{name}_token": number for name, number in ids.items() if isinstance(number, int)}
    entries = tokenizer_config(tokenizer) | {
        key: text for key, number in named.items() if (text := tokenizer.backend.id_to_token(number)) is not None
    }
    architecture = metadata.get("general.architecture")
    if isinstance(longest := metadata.get(f"{architecture}.context_length"), int):
        entries["model_max_length"] = longest
    for key in ("add_bos_token", "add_eos_token"):
        if isinstance(flag := metadata.get(f"tokenizer.ggml.{key}"), bool):
            entries[key] = flag
    if templates := _templates(metadata):
        several = [{"name": name, "template": text} for name, text in templates.items()]
        entries["chat_template"] = templates["default"] if templates.keys() == {"default"} else several
    turn = metadata.get("tokenizer.ggml.eot_token_id")
    ends = list(dict.fromkeys(i for i in (tokenizer.eos_id, turn) if isinstance(i, int)))
    generation = {"bos_token_id": tokenizer.bos_id, "eos_token_id": ends if len(ends) > 1 else tokenizer.eos_id}
    padding = {"pad_token_id": named.get("pad_token")}
    files = {
        "tokenizer.json": tokenizer.backend.to_str(pretty=True),
        "tokenizer_config.json": json.dumps(entries, indent=2, ensure_ascii=False) + "\n",
        "generation_config.json": json.dumps(generation | padding, indent=2) + "\n",
    }
    return SideFiles({name: text.encode() for name, text in files.items()}, padding)


def _templates(metadata: Mapping[str, Any]) -> dict[str, str]:
    """Chat templates by name, the one without a name as "default"."""
    named = {key.removeprefix(f"{_TEMPLATE}."): key for key in metadata if key.startswith(f"{_TEMPLATE}.")}
    found = {name: metadata.get(key) for name, key in {"default": _TEMPLATE, **named}.items()}
    return {name: text for name, text in found.items() if isinstance(text, str)}


def side_files_description(beside: SideFiles) -> dict[str, Any]:
    """`beside` as JSON, for a checkpoint; files that are not text as base 64."""
    files: dict[str, Any] = {}
    for name, content in beside.files.items():
        try:
            files[name] = content.decode()
        except UnicodeDecodeError:
            files[name] = {"base64": base64.b64encode(content).decode()}
    return {"files": files, "config": dict(beside.config), "dtypes": dict(beside.dtypes)}


def described_side_files(description: Mapping[str, Any]) -> SideFiles:
    """The inverse of `side_files_description`.

    Raises:
      KeyError: if an entry is missing.
      TypeError: if one is of another type.
      ValueError: if a file is neither text nor base 64, or would not lie inside the directory.
    """
    files = {}
    for name, content in description["files"].items():
        if name.startswith("/") or not {"..", ""}.isdisjoint(name.split("/")):
            msg = f"a file beside a model lies in its directory, not at {name!r}"
            raise ValueError(msg)
        text = isinstance(content, str)
        files[name] = content.encode() if text else base64.b64decode(content["base64"], validate=True)
    return SideFiles(files, dict(description["config"]), dict(description["dtypes"]))


def hf_entries(config: DecoderConfig, beside: SideFiles) -> dict[str, Any]:
    """The entries of config.json for a model of `beside` that now is `config`.

    Those of the beside where they still say what the model is. Where layers or channels went, those of `config_to_hf`,
    and with them every entry of the beside that these do not take the place of: token ids, dtype, dropout, versions.
    Of a multimodal model, whose text decoder alone is written, they are those of the text decoder.

    Args:
      config: of the model to write.
      beside: what it came with.

    Returns:
      Entries that `config_from_hf` turns back into `config`.

    Raises:
      ValueError: if the family has no way to say what `config` says.
    """
    written = config_to_hf(config)
    before = _text_entries(beside.config)
    if "model_type" in before and config_from_hf(before) == config:
        known = before.get("architectures") or []
        own = {} if set(written["architectures"]) & set(known) else {"architectures": written["architectures"]}
        return {key: value for key, value in before.items() if key != "auto_map"} | own
    carried = {key: value for key, value in before.items() if key not in _NOT_CARRIED}
    entries = carried | written
    if config_from_hf(entries) != config:
        lost = sorted(carried.keys() - written.keys())
        msg = f"config.json cannot say what the model is beside the entries that its beside had: {lost}."
        raise ValueError(msg)
    return entries


def _text_entries(entries: Mapping[str, Any]) -> dict[str, Any]:
    """`entries`, of a multimodal model those of its text decoder, with what says outside how it was made and is run.

    The tensors that are written bear a text model's names: under the multimodal type transformers would find none.
    """
    if entries.get("model_type") != MULTIMODAL:
        return dict(entries)
    about = {key: value for key, value in entries.items() if key in HARMLESS and value is not None}
    both = {key: entries[key] for key in _OF_BOTH if key in entries}
    return {**(entries.get("text_config") or {}), **about, **both, "model_type": "gemma3_text"}


def stored_dtype(config: DecoderConfig, path: str, beside: SideFiles) -> str | None:
    """The dtype in which the beside stored the tensor that holds the parameter `path`; None if it is not known."""
    return beside.dtypes.get(_kind(place(config, path).name))


def rounded_as_stored(model: Decoder, beside: SideFiles) -> Decoder:
    """A copy of `model` with the values that its parameters have once stored in the dtypes of `beside`.

    What a rebuilt module stands on may lack what it adds, and is no weight of the original: it is kept as it is.
    """
    values, inside = parameters(model), tuple(f"{path}." for path in rebuilt_modules(model))
    for path, value in values.items():
        known = path.rpartition(".")[2] in _LEAVES and not path.startswith(inside)
        dtype = stored_dtype(model.config, path, beside) if known else None
        if dtype is not None and dtype != value.dtype:
            values[path] = jnp.asarray(in_dtype(np.asarray(value), dtype), value.dtype)
    return with_parameters(model, values)


def in_dtype(value: np.ndarray, dtype: str) -> np.ndarray:
    """`value` in `dtype`, to nearest; as it is where that cannot hold its size. No number becomes zero.

    So a pruned model has as many zeros in float16 as it was counted to have in float32.
    """
    with np.errstate(over="ignore"):
        small = value.astype(jnp.dtype(dtype), copy=False)
    if np.any(np.isinf(small) & ~np.isinf(value)):
        return value
    lost = (value != 0) & (small == 0)
    if lost.any():
        small[lost] = np.sign(value[lost]) * float(jnp.finfo(dtype).smallest_subnormal)
    return small


def _kind(name: str) -> str:
    return _LAYER.sub(".*.", name)
