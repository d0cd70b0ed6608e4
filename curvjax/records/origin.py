"""Where numbers come from: the model, the text, the settings, what they cost, and on what."""

from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from curvjax.records.value import machine, peak_memory_bytes, versions


@dataclass(frozen=True, kw_only=True)
class ModelOrigin:
    """A model. sha256: of all that it computes with. family: as config.json calls it, from which tensor names follow.

    projections: paths of matrices within its layers. revision: commit of a model of the Hub.
    """

    name: str
    sha256: str
    parameters: int = 0
    layers: int = 0
    family: str = ""
    projections: tuple[str, ...] = ()
    revision: str = ""


@dataclass(frozen=True, kw_only=True)
class TextOrigin:
    """Tokens. source: file or name. sha256: of the documents. tokens: those with a loss, in rows of `length`.

    begin_of_text, end_of_text: tokens that stand around every document. cut: numbers of prompts that lost their
    beginning, of tokens so lost, and of completions longer than a row.
    """

    source: str
    sha256: str
    tokens: int
    sequences: int = 0
    length: int = 0
    begin_of_text: tuple[str, ...] = ()
    end_of_text: tuple[str, ...] = ()
    cut: tuple[int, int, int] = (0, 0, 0)


@dataclass(frozen=True, kw_only=True)
class Cost:
    """What was spent. gradient_seconds: of one gradient of the whole model on the same rows; the unit of the next.

    products: with the curvature. peak_memory_bytes: of the process, largest resident size.
    """

    seconds: float = 0.0
    gradient_seconds: float | None = None
    gradient_equivalents: float | None = None
    products: int = 0
    wall_seconds: float | None = None
    peak_memory_bytes: int = field(default_factory=peak_memory_bytes)


@dataclass(frozen=True, kw_only=True)
class Origin:
    """Where a value comes from. text: None where no text was read. settings: all that were chosen, by name."""

    model: ModelOrigin
    text: TextOrigin | None = None
    settings: dict[str, Any] = field(default_factory=dict)
    cost: Cost = field(default_factory=Cost)
    versions: dict[str, str] = field(default_factory=versions)
    machine: dict[str, Any] = field(default_factory=machine)

    def require_model(self, sha256: str, *, source: str | Path) -> None:
        """Refuse what belongs to other weights.

        Raises:
          ValueError: if the hash differs.
        """
        if self.model.sha256 != sha256:
            msg = (
                f"{source} was made for model {self.model.name!r} with weights {self.model.sha256[:12]}..., but the "
                f"model given has {sha256[:12]}...; score and allocate again for this model."
            )
            raise ValueError(msg)
