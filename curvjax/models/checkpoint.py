"""Checkpoints of our own: one orbax directory with a flat mapping of arrays and a JSON description.

Orbax writes beside the final directory and renames it at the end, so a reader finds all of it or nothing.
"""

import dataclasses
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import tokenizers
from flax import nnx
from jax.typing import DTypeLike
from orbax.checkpoint import v1 as ocp

from curvjax.models.config import DecoderConfig
from curvjax.models.decoder import Decoder, abstract_decoder
from curvjax.models.parameters import parameter_shapes, parameters, require_finite, with_parameters
from curvjax.models.rope import Llama3Bands, Rope
from curvjax.models.side_files import SideFiles, described_side_files, side_files_description
from curvjax.models.tokenizer import Tokenizer

_MODEL_SCHEMA = "curvjax.model/1"
_MARK = "_CHECKPOINT_METADATA"  # the file that orbax puts into every finished checkpoint


class Checkpoint(NamedTuple):
    """arrays: by dotted path. description: JSON; `description["schema"]` names its kind and version."""

    arrays: dict[str, jax.Array]
    description: dict[str, Any]


def save_arrays(arrays: Mapping[str, jax.Array], directory: str | Path, *, description: Mapping[str, Any]) -> None:
    """Write a checkpoint, whole or not at all.

    Args:
      arrays: by dotted path; of any shapes and numeric dtypes.
      directory: where to; must not exist.
      description: what a reader needs to make sense of the arrays, as JSON, with a "schema".

    Raises:
      FileExistsError: if `directory` exists.
      ValueError: if no checkpoint can lie there.
    """
    require_checkpoint_place(directory)
    directory = Path(directory).resolve()
    if directory.exists():
        msg = f"{directory} exists; choose a new directory, or remove this one."
        raise FileExistsError(msg)
    ocp.save(str(directory), dict(arrays), custom_metadata=dict(description))


def require_checkpoint_place(directory: str | Path) -> None:
    """Do nothing if a checkpoint can lie at `directory`: to be asked before long work.

    Raises:
      ValueError: if the path has a bracket, with which orbax writes what it does not find again.
    """
    if "[" in str(directory := Path(directory).resolve()):
        msg = f"{directory}: no checkpoint can be written below a name with '['; choose another."
        raise ValueError(msg)


def load_arrays(directory: str | Path, *, schema: str, dtype: DTypeLike | None = None) -> Checkpoint:
    """Read a checkpoint of `save_arrays` onto the default device.

    Args:
      directory: where it lies.
      schema: the kind and version that the caller can read.
      dtype: of the floating-point arrays; None: as saved.

    Returns:
      All of its arrays, and its description.

    Raises:
      ValueError: if it is incomplete, damaged or of another schema, or an array holds what is no finite number.
    """
    directory = Path(directory).resolve()
    if not is_checkpoint(directory):
        msg = f"{directory}: not a finished checkpoint; expected a directory with {_MARK}."
        raise ValueError(msg)
    stored = _read(directory, None)
    found = stored.custom_metadata.get("schema") if isinstance(stored.custom_metadata, dict) else None
    if found != schema:
        told = f"{found!r}" if found else f"None, as another program leaves, or damage to {_MARK}"
        msg = f"{directory}: schema {told}, expected {schema!r}."
        raise ValueError(msg)
    device = jax.sharding.SingleDeviceSharding(jax.devices()[0])
    shapes = {
        path: jax.ShapeDtypeStruct(leaf.shape, _read_dtype(leaf.dtype, dtype), sharding=device)
        for path, leaf in stored.metadata.items()
    }
    arrays = _read(directory, shapes)
    for path, array in arrays.items():
        require_finite(array, f"{directory}: {path}")
    return Checkpoint(arrays, stored.custom_metadata)


def is_checkpoint(path: str | Path) -> bool:
    """Whether a finished orbax checkpoint lies at `path`."""
    return (Path(path) / _MARK).is_file()


def checkpoint_schema(directory: str | Path) -> str | None:
    """The kind and version of the checkpoint in `directory`; None where no checkpoint lies, or one without.

    Raises:
      ValueError: if it is damaged.
    """
    if not is_checkpoint(directory):
        return None
    found = _read(Path(directory).resolve(), None).custom_metadata
    return found.get("schema") if isinstance(found, dict) else None


class Description(NamedTuple):
    """What a checkpoint says of a model beside its arrays."""

    config: DecoderConfig
    tokenizer: Tokenizer
    beside: SideFiles


def model_description(config: DecoderConfig, tokenizer: Tokenizer, beside: SideFiles | None = None) -> dict[str, Any]:
    """A `Description` as JSON."""
    return {
        "config": dataclasses.asdict(config),
        "tokenizer": {
            "json": tokenizer.backend.to_str(),
            "bos_id": tokenizer.bos_id,
            "eos_id": tokenizer.eos_id,
        },
        "beside": side_files_description(beside or SideFiles()),
    }


def described_model(description: Mapping[str, Any]) -> Description:
    """The inverse of `model_description`; what was written before there were origins has an empty one.

    Raises:
      KeyError: if an entry is missing.
      TypeError: if one is of another type or unknown.
      ValueError: if a value is out of range.
    """
    config, saved = _config(description["config"]), description["tokenizer"]
    backend = tokenizers.Tokenizer.from_str(saved["json"])
    tokenizer = Tokenizer(backend, bos_id=saved["bos_id"], eos_id=saved["eos_id"])
    beside = described_side_files(description["beside"]) if "beside" in description else SideFiles()
    return Description(config, tokenizer, beside)


def save_checkpoint(
    model: Decoder, directory: str | Path, *, tokenizer: Tokenizer, beside: SideFiles | None = None
) -> None:
    """Write all that `load_checkpoint` needs to rebuild `model`, whole or not at all.

    Args:
      model: a plain decoder: adapters are merged, parameters have their original shapes.
      directory: where to; must not exist.
      tokenizer: of the model.
      beside: what the model came with, for whoever writes it as a Hugging Face directory later.

    Raises:
      ValueError: if the model holds other variables than those of its config.
    """
    variables = nnx.to_flat_state(nnx.state(model))
    held = {".".join(map(str, path)): leaf.shape for path, leaf in variables}
    wanted = parameter_shapes(abstract_decoder(model.config))
    if held != wanted:
        strange = sorted(path for path in held | wanted if held.get(path) != wanted.get(path))
        msg = f"{len(strange)} variables are not those of the model's config, e.g. {strange[:3]}; merge adapters first."
        raise ValueError(msg)
    description = {"schema": _MODEL_SCHEMA} | model_description(model.config, tokenizer, beside)
    save_arrays(parameters(model), directory, description=description)


class Restored(NamedTuple):
    """What `save_checkpoint` was given."""

    model: Decoder
    tokenizer: Tokenizer
    beside: SideFiles


def load_checkpoint(directory: str | Path, *, dtype: DTypeLike = jnp.float32) -> Restored:
    """Rebuild a model of `save_checkpoint`.

    Args:
      directory: where it lies.
      dtype: of all parameters, whatever was saved.

    Returns:
      The model, its tokenizer and its beside.

    Raises:
      ValueError: if the checkpoint is damaged or its arrays are not those of its config.
    """
    arrays, description = load_arrays(directory, schema=_MODEL_SCHEMA, dtype=dtype)
    try:
        config, tokenizer, beside = described_model(description)
        model = with_parameters(abstract_decoder(config, dtype=dtype), arrays)
    except (KeyError, TypeError, ValueError) as error:
        msg = f"{directory}: not a model that this version can rebuild: {error}."
        raise ValueError(msg) from error
    return Restored(model, tokenizer, beside)


def _read(directory: Path, shapes: dict[str, jax.ShapeDtypeStruct] | None) -> Any:
    """The checkpoint's metadata, or, given `shapes`, its arrays."""
    try:
        found = ocp.metadata(str(directory)) if shapes is None else ocp.load(str(directory), shapes)
        damaged = shapes is None and not isinstance(found.metadata, dict)
    except Exception as error:  # what lies below orbax raises this very class where a file is short or gone
        msg = f"{directory}: damaged checkpoint: {str(error).splitlines()[0][:300]}."
        raise ValueError(msg) from error
    if damaged:  # orbax logs what is wrong and goes on
        msg = f"{directory}: damaged checkpoint: the list of its arrays cannot be read."
        raise ValueError(msg)
    return found


def _read_dtype(saved: DTypeLike, asked: DTypeLike | None) -> DTypeLike:
    return saved if asked is None or not jnp.issubdtype(saved, jnp.floating) else asked


def _config(entries: Mapping[str, Any]) -> DecoderConfig:
    """The inverse of `dataclasses.asdict` through JSON, which has neither tuples nor classes."""
    settings: dict[str, Any] = {k: tuple(v) if isinstance(v, list) else v for k, v in entries.items()}
    for key in ("rope", "local_rope"):
        if entries[key] is not None:
            settings[key] = _rope(entries[key])
    return DecoderConfig(**settings)


def _rope(entries: Mapping[str, Any]) -> Rope:
    settings: dict[str, Any] = dict(entries)
    if entries["bands"] is not None:
        settings["bands"] = Llama3Bands(**entries["bands"])
    return Rope(**settings)
