"""Models for the commands: whatever `load_model` takes, and checkpoints of rebuilt models."""

from dataclasses import dataclass
from pathlib import Path

from curvjax.models import DEMONSTRATIONS, BeginOfText, Loaded, fitted_tokenizer, load_model, submodules
from curvjax.surgery import QuantizedLinear, is_rebuilt, load_rebuilt


@dataclass(frozen=True, kw_only=True)
class ModelSettings:
    """How a model reads texts."""

    begin_of_text: BeginOfText = "tokenizer"
    """Whether each text begins with the tokenizer's first token (bos): as its files ask for, always, or never."""


def open_model(path: str | Path, *, begin_of_text: BeginOfText = "tokenizer") -> Loaded:
    """A model and its tokenizer; rebuilt models come as they were saved, with their adapters, factors and codes.

    Args:
      path: as for `curvjax.load_model`, or a checkpoint that `adapt`, `prune`, `quantize`, `factorize` or `upcycle`
        saved.
      begin_of_text: as for `curvjax.load_model`.

    Returns:
      Model, tokenizer, configuration, name and origin; a checkpoint is called by its folder and the folder it lies in.

    Raises:
      FileNotFoundError: if there is nothing at `path`.
      ValueError: if what is there is of no known kind, damaged, or its tokenizer does not belong to its model.
    """
    if path in DEMONSTRATIONS or not is_rebuilt(path):
        return load_model(path, begin_of_text=begin_of_text)
    model, tokenizer, beside = load_rebuilt(path)
    rows = model.config.vocab_size
    tokenizer = fitted_tokenizer(tokenizer, vocab_size=rows, source=path, begin_of_text=begin_of_text)
    return Loaded(model, tokenizer, model.config, "/".join(Path(path).resolve().parts[-2:]), beside)


def open_parameters(path: str | Path, *, begin_of_text: BeginOfText = "tokenizer") -> Loaded:
    """As `open_model`, for what takes gradients: every weight is a parameter.

    Raises:
      FileNotFoundError: if there is nothing at `path`.
      ValueError: as `open_model`, or if projections are stored as codes.
    """
    loaded = open_model(path, begin_of_text=begin_of_text)
    coded = [name for name, child in submodules(loaded.model).items() if isinstance(child, QuantizedLinear)]
    if coded:
        msg = (
            f"{path}: {len(coded)} projections are stored as codes, which have no gradient; score the model before it "
            "is quantised, or its dense form (curvjax export CHECKPOINT --to safetensors)."
        )
        raise ValueError(msg)
    return loaded
