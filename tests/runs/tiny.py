"""A decoder of 12 tiny layers with a tokenizer of 60 words, and texts in those words."""

import dataclasses
from pathlib import Path

import numpy as np
import tokenizers
from flax import nnx
from tokenizers import models, pre_tokenizers

from curvjax.data import Document, Question
from curvjax.models import Decoder, DecoderConfig, parameters, save_hf, with_parameters
from curvjax.models.tokenizer import Tokenizer
from curvjax.runs.score import ScoreSettings

WORDS = [f"w{number}" for number in range(60)]
CONFIG = DecoderConfig(
    vocab_size=64,
    hidden_size=16,
    intermediate_size=24,
    num_layers=12,
    num_heads=2,
    num_kv_heads=1,
    head_dim=8,
    max_positions=64,
    tied=True,
)
SETTINGS = ScoreSettings(tokens=32, length=16, rtol=0.2, probes=2, grid=(1.0, 0.1))


def save_tiny_model(directory: Path, *, seed: int = 1, layers: int = CONFIG.num_layers) -> Path:
    """A Hugging Face directory; every layer has a scale of its own, so that gains differ."""
    model = Decoder(dataclasses.replace(CONFIG, num_layers=layers), rngs=nnx.Rngs(seed))
    scales = np.random.default_rng(seed).permutation(np.linspace(0.5, 3.0, CONFIG.num_layers))
    values = {
        path: value * float(scales[int(path.split(".")[1])]) if path.startswith("layers.") else value
        for path, value in parameters(model).items()
    }
    save_hf(with_parameters(model, values), directory, tokenizer=_tokenizer())
    return directory


def texts(count: int, *, words: int = 15, seed: int = 1) -> list[Document]:
    """Documents of random words, all different."""
    rng = np.random.default_rng(seed)
    return [Document(f"text/{number}", " ".join(rng.choice(WORDS, words))) for number in range(count)]


def questions(count: int, *, seed: int = 2) -> list[Question]:
    """Questions of random words with two answers each."""
    rng = np.random.default_rng(seed)
    drawn = [rng.choice(WORDS, 7) for _ in range(count)]
    return [
        Question(f"q/{number}", (" ".join(words[:5]),) * 2, (f" {words[5]}", f" {words[6]}"), number % 2)
        for number, words in enumerate(drawn)
    ]


def write_texts(path: Path, documents: list[Document]) -> Path:
    """A directory with one .txt file for each document."""
    path.mkdir()
    for number, document in enumerate(documents):
        (path / f"{number:03d}.txt").write_text(document.text)
    return path


def _tokenizer() -> Tokenizer:
    vocabulary = {word: number for number, word in enumerate(["<unk>", "<end>", *WORDS])}
    backend = tokenizers.Tokenizer(models.WordLevel(vocabulary, unk_token="<unk>"))
    backend.pre_tokenizer = pre_tokenizers.Whitespace()
    return Tokenizer(backend, eos_id=1)
