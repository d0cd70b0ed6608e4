"""The tiny model on disk, its texts in rows, and what the tests measure of it."""

from pathlib import Path

from curvjax.data import Document
from curvjax.models import Loaded, save_hf
from curvjax.runs.measure import ScoreSettings
from curvjax.runs.text import Text, TextSettings, packed_text
from curvjax.testing import CONFIG, WORDS, tiny_model
from curvjax.testing import tiny_questions as questions
from curvjax.testing import tiny_texts as texts

SETTINGS = ScoreSettings(policy="trust-radius", rtol=0.2, probes=2, grid=(1.0, 0.1))
ROWS = TextSettings(tokens=32, length=16)

__all__ = ["ROWS", "SETTINGS", "WORDS", "questions", "rows", "save_tiny_model", "texts", "write_texts"]


def save_tiny_model(directory: Path, *, seed: int = 1, layers: int = CONFIG.num_layers) -> Path:
    """A Hugging Face directory of `tiny_model`."""
    loaded = tiny_model(seed=seed, layers=layers)
    save_hf(loaded.model, directory, tokenizer=loaded.tokenizer)
    return directory


def rows(loaded: Loaded, documents: list[Document] | None = None) -> Text:
    """Two rows of 16 tokens."""
    return packed_text(texts(8) if documents is None else documents, loaded, ROWS, source="texts")


def write_texts(path: Path, documents: list[Document]) -> Path:
    """A directory with one .txt file for each document."""
    path.mkdir()
    for number, document in enumerate(documents):
        (path / f"{number:03d}.txt").write_text(document.text)
    return path
