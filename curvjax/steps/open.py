"""Models for the commands: whatever `load_model` takes, and checkpoints of rebuilt models."""

from pathlib import Path

from curvjax.models import DEMONSTRATIONS, Loaded, check_vocabulary, load_model
from curvjax.surgery import QuantizedLinear, is_rebuilt, load_rebuilt, submodules


def open_model(path: str | Path) -> Loaded:
    """A model and its tokenizer; rebuilt models come as they were saved, with their adapters, factors and codes.

    Args:
      path: as for `curvjax.load_model`, or a checkpoint that `adapt`, `prune`, `quantize`, `factorize` or `upcycle`
        saved.

    Returns:
      Model, tokenizer, configuration, name and origin; a checkpoint is called by its folder and the folder it lies in.

    Raises:
      FileNotFoundError: if there is nothing at `path`.
      ValueError: if what is there is of no known kind, damaged, or its tokenizer does not belong to its model.
    """
    if path in DEMONSTRATIONS or not is_rebuilt(path):
        return load_model(path)
    model, tokenizer, origin = load_rebuilt(path)
    check_vocabulary(tokenizer, vocab_size=model.config.vocab_size, source=path)
    return Loaded(model, tokenizer, model.config, "/".join(Path(path).resolve().parts[-2:]), origin)


def open_parameters(path: str | Path) -> Loaded:
    """As `open_model`, for what takes gradients: every weight is a parameter.

    Raises:
      FileNotFoundError: if there is nothing at `path`.
      ValueError: as `open_model`, or if projections are stored as codes.
    """
    loaded = open_model(path)
    coded = [name for name, child in submodules(loaded.model).items() if isinstance(child, QuantizedLinear)]
    if coded:
        msg = (
            f"{path}: {len(coded)} projections are stored as codes, which have no gradient; score the model before it "
            "is quantised, or its dense form (curvjax export CHECKPOINT --to safetensors)."
        )
        raise ValueError(msg)
    return loaded
