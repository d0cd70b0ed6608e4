"""A rebuilt model in the forms that can hold it: a checkpoint of our own, and a dense Hugging Face directory."""

from pathlib import Path
from typing import NamedTuple

from curvjax.artefacts import Record
from curvjax.models import Decoder, Loaded, config_to_hf, rounded, save_hf
from curvjax.surgery import dense_equivalent, model_hash, save_rebuilt


class Saved(NamedTuple):
    """directory: of everything; a Hugging Face directory unless `only_here`. checkpoint: within it, None if left out.

    only_here: why only the checkpoint can hold the model; "" where both can. weights_sha256: the model's `model_hash`.
    around: tokens between which the texts lay that it was rebuilt with.
    """

    directory: Path
    checkpoint: Path | None
    only_here: str
    weights_sha256: str
    around: dict[str, list[str]]

    def moved(self, directory: Path) -> "Saved":
        """The same, once its folder was renamed."""
        at = None if self.checkpoint is None else directory / self.checkpoint.relative_to(self.directory)
        return self._replace(directory=directory, checkpoint=at)

    @property
    def record(self) -> Record:
        """What allocation.json says of it."""
        return {"weights_sha256": self.weights_sha256, "only_checkpoint": self.only_here or None} | self.around


def save_forms(model: Decoder, directory: str | Path, *, loaded: Loaded, checkpoint: bool = True) -> Saved:
    """Write `directory` as the dense equivalent of `model` where one exists, and `directory/checkpoint` as it is.

    Both have the values that the dtypes of the original can hold.

    Args:
      model: a decoder, rebuilt in whatever way.
      directory: where to; new or empty.
      loaded: what it was rebuilt from: its tokenizer and what else it came with go along.
      checkpoint: False leaves the checkpoint out, unless nothing else can hold the model.

    Returns:
      What was written.

    Raises:
      FileExistsError: if `directory` holds something.
    """
    directory, tokenizer, origin = Path(directory), loaded.tokenizer, loaded.origin
    model = rounded(model, origin)
    dense, only_here = _dense(model)
    if dense is not None:
        save_hf(dense, directory, tokenizer=tokenizer, origin=origin)
    at = directory / "checkpoint" if checkpoint or dense is None else None
    if at is not None:
        save_rebuilt(model, at, tokenizer=tokenizer, origin=origin)
    return Saved(directory, at, only_here, model_hash(model))


def _dense(model: Decoder) -> tuple[Decoder | None, str]:
    """The dense equivalent, or why no Hugging Face directory can hold the model."""
    try:
        dense = dense_equivalent(model)
        config_to_hf(dense.config)
    except ValueError as error:
        return None, str(error)
    return dense, ""
