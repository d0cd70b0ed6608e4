"""Claim: layers chosen by the loss of the model without them are missed less than those chosen by what passes through.

    nice .venv/bin/python -m experiments.depth.run

Two free CPU cores, about 15 minutes; goes on where it was stopped. SmolLM2-135M, 3 and 6 of its 30 layers left out by
each depth plan on 256 tokens of SQuAD, nothing trained afterwards; perplexity on 2048 tokens of other documents of
SQuAD and of BoolQ. Expected: plans by the loss lowest, those by angle and by block influence above them. What could
refute it: a plan that measures no loss as good on either text; layers drawn at random as good as any.
"""

import json
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import tyro

from curvjax.data import read_documents, split_documents
from curvjax.evaluation import perplexity
from curvjax.evaluation.perplexity import clustered_mean
from curvjax.models import Decoder, Loaded, load_model
from curvjax.records import machine, plain, read_json, versions, write_json
from curvjax.runs.depth import Angular, Dropped, DropStep, Greedy, LeastScore, Segment, Segments
from curvjax.runs.measure import ScoreSettings
from curvjax.runs.text import Text, TextSettings, packed_text
from curvjax.surgery import drop_layers

FOLDER = Path(__file__).parent


@dataclass(frozen=True, kw_only=True)
class Settings:
    """Sizes."""

    model: str = "smollm2-135m"
    """What `curvjax.load_model` takes."""
    data: str = "demo:squad"
    """Documents to choose by and, others of them, to test on."""
    other: str = "demo:boolq"
    """Another text to test on."""
    tokens: int = 256
    """To choose by."""
    test_tokens: int = 2048
    """To test on, of each text."""
    counts: tuple[int, ...] = (3, 6)
    """Layers left out."""
    orders: int = 2
    """Pairs of orders of `shapley`."""
    seed: int = 0
    """Of the split, of the orders and of the layers drawn."""
    out: str = "record.json"
    """The record's name."""


def plans(settings: Settings) -> dict[str, tuple[Callable[..., Dropped], bool]]:
    """Each plan, and whether its layers for fewer are the first of those for more."""
    drawn = ScoreSettings(rows=2, orders=settings.orders, seed=settings.seed)
    return {
        "angular": (Angular(), False),
        "shortgpt": (LeastScore(), True),
        "skip-divergence": (LeastScore(score="skip-divergence", settings=drawn), True),
        "segment": (Segment(), False),
        "greedy": (Greedy(), True),
        "shapley": (LeastScore(score="shapley", settings=drawn), True),
        "random": (lambda model, text, count: random_layers(model, count, settings.seed), True),
        "segments": (Segments(), False),
    }


def random_layers(model: Decoder, count: int, seed: int) -> Dropped:
    """The control."""
    drawn = np.random.default_rng(seed).permutation(len(model.layers))[:count]
    return Dropped("nothing", tuple(DropStep((layer,), 0.0) for layer in drawn.tolist()))


def texts(loaded: Loaded, settings: Settings) -> tuple[Text, dict[str, Text]]:
    """To choose by, and to test on."""
    split = split_documents(read_documents(settings.data), seed=settings.seed, shares=(0.5, 0.0, 0.5))
    rows = TextSettings(tokens=settings.test_tokens, length=128)
    tests = {settings.data: split.test, settings.other: read_documents(settings.other)}
    by = packed_text(split.calibration, loaded, TextSettings(tokens=settings.tokens, length=128), source=settings.data)
    return by, {name: packed_text(documents, loaded, rows, source=name) for name, documents in tests.items()}


def main(settings: Settings) -> None:
    """Every plan that the record lacks."""
    loaded, path = load_model(settings.model), FOLDER / settings.out
    text, tests = texts(loaded, settings)
    about = {
        "settings": asdict(settings),
        "texts": plain([text.origin, *(test.origin for test in tests.values())]),
        "versions": versions(),
        "machine": machine(),
    }
    found: dict[str, Any] = {}
    if path.exists() and (before := read_json(path))["settings"] == plain(asdict(settings)):
        found = before["result"]

    def tested(layers: tuple[int, ...]) -> dict[str, Any]:
        model = drop_layers(loaded.model, layers)
        measured = {name: perplexity(model, test.batch) for name, test in tests.items()}
        return {
            name: {
                "perplexity": each.perplexity,
                "row_nll": each.row_nll.tolist(),
                "row_tokens": each.row_tokens.tolist(),
            }
            for name, each in measured.items()
        }

    if "dense" not in found:
        found["dense"] = {"tests": tested(())}
    for name, (plan, nested) in plans(settings).items():
        for count in sorted(settings.counts, reverse=True):
            label, most = f"{name}, {count}", f"{name}, {max(settings.counts)}"
            if label in found:
                continue
            if nested and most in found:
                layers, seconds, steps = tuple(found[most]["layers"][:count]), 0.0, found[most]["steps"][:count]
            else:
                started = time.perf_counter()
                chosen = plan(loaded.model, text, count)
                layers, seconds = chosen.layers, time.perf_counter() - started
                steps = plain(chosen.steps)
            found[label] = {"layers": list(layers), "steps": steps, "seconds": seconds, "tests": tested(layers)}
            write_json(path, about | {"result": found})
            print(label, layers, json.dumps({k: round(v["perplexity"], 1) for k, v in found[label]["tests"].items()}))
    for label, one in found.items():
        greedy = found[f"greedy, {len(one.get('layers', ()))}"] if label != "dense" else found["dense"]
        for name, test in one["tests"].items():
            test["less_greedy"] = less(test, greedy["tests"][name])
    write_json(path, about | {"result": found})


def less(one: dict[str, Any], other: dict[str, Any]) -> tuple[float, float]:
    """Nats a token of one less those of the other, on the same rows, with the standard error over these."""
    apart = np.asarray(one["row_nll"]) - np.asarray(other["row_nll"])
    return clustered_mean(apart, np.asarray(one["row_tokens"]))


if __name__ == "__main__":
    main(tyro.cli(Settings))
