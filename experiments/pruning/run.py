"""Do sparsities by certified gain beat uniform ones, whichever method prunes?

Command:   .venv/bin/python -m experiments.pruning.run            (about 15 minutes on two cores)
Model:     SmolLM2-135M; gains of 128 SQuAD tokens from `experiments.decisions.measure`; calibration 2048 SQuAD tokens.
Arms:      magnitude, Wanda and SparseGPT at 50, 60 and 70%, under sparsities by gain (size-neutral program, kappa 0.5,
           not tuned here), uniform ones, and those of permuted gains.
Measured:  perplexity on 4096 tokens of BoolQ passages and 4096 of held-out SQuAD paragraphs; differences to uniform in
           nats per token, with standard errors over rows.
Expected:  by gain below uniform below permuted, for every method; SparseGPT below Wanda below magnitude.
Control:   permuted gains. If they do as well as gains, the order of the layers does not matter.
"""

import json
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import jax
import numpy as np
import tyro

from curvjax.allocation import allocate_sparsity, quality
from curvjax.data import Batch, pack, read_documents, sample, take
from curvjax.evaluation import paired_difference, perplexity
from curvjax.models import Decoder, load_model
from curvjax.records import machine, versions, write_json
from curvjax.surgery import Pruned, prune_magnitude, prune_sparsegpt, prune_wanda

FOLDER = Path(__file__).parent
METHODS: dict[str, Callable[..., Pruned]] = {
    "magnitude": prune_magnitude,
    "wanda": prune_wanda,
    "sparsegpt": prune_sparsegpt,
}


@dataclass(frozen=True, kw_only=True)
class Pruning:
    """Arms and texts."""

    model: str = "smollm2-135m"
    """What `curvjax.load_model` takes."""
    brackets: Path = FOLDER.parent / "decisions" / "brackets_squad.json"
    """Gains, as `experiments.decisions.measure` writes them."""
    sparsities: tuple[float, ...] = (0.5, 0.6, 0.7)
    """Shares of all weights."""
    methods: tuple[str, ...] = tuple(METHODS)
    """How weights are chosen."""
    kappa: float = 0.5
    """Exponent of the quality."""
    calibration: int = 2048
    """Tokens of SQuAD."""
    tokens: int = 4096
    """Test tokens of each text."""
    length: int = 256
    """Tokens in a row."""
    seed: int = 1
    """Of the documents' order and the permutation."""


def main(settings: Pruning) -> None:
    """All arms, and the record."""
    loaded = load_model(settings.model)
    documents = read_documents("demo:squad")
    documents = sample(documents, len(documents), seed=settings.seed)
    half = len(documents) // 2
    batch = rows_of(documents[:half], loaded, settings.calibration, settings.length)
    boolq = read_documents("demo:boolq")
    tests = {
        "squad": rows_of(documents[half:], loaded, settings.tokens, settings.length),
        "boolq": rows_of(sample(boolq, len(boolq), seed=settings.seed), loaded, settings.tokens, settings.length),
    }
    units = json.loads(settings.brackets.read_text(encoding="utf-8"))["units"]
    dense = {text: perplexity(loaded.model, rows) for text, rows in tests.items()}
    record = {
        "settings": settings.__dict__ | {"brackets": settings.brackets.name},
        "dense": {text: found.perplexity for text, found in dense.items()},
        "arms": [
            row for share in settings.sparsities for row in at(share, loaded.model, batch, tests, units, settings)
        ],
        "versions": versions(),
        "machine": machine(),
    }
    write_json(FOLDER / "record.json", record)


def rows_of(documents: list, loaded: Any, tokens: int, length: int) -> Batch:
    """Whole rows that hold so many tokens."""
    rows = tokens // length
    return take(pack(documents[: 12 * rows], loaded.tokenizer, length=length), range(rows))


def at(
    share: float, model: Decoder, batch: Batch, tests: dict[str, Batch], units: list[dict[str, Any]], settings: Pruning
) -> list[dict[str, Any]]:
    """Every method and arm at one sparsity."""
    names = [unit["name"] for unit in units]
    size = np.asarray([sum(a * b for a, b in unit["projections"].values()) for unit in units], float)
    q = np.asarray(quality(np.asarray([(unit["lower"][-1] + unit["upper"][-1]) / 2 for unit in units])))
    dealt = q[np.asarray(jax.random.permutation(jax.random.key(settings.seed), q.size))]
    program = {"sparsity": share, "kappa": settings.kappa, "size": size, "size_neutral": True}
    arms = {"uniform": np.full(q.size, share)}
    arms |= {name: np.asarray(allocate_sparsity(x, **program).amount) for name, x in (("gain", q), ("permuted", dealt))}
    rows = []
    for method in settings.methods:
        uniform = {}
        for arm, amounts in arms.items():
            wanted = dict(zip(names, amounts.tolist(), strict=True))
            calibrated = () if method == "magnitude" else (batch,)
            rest = {} if method == "magnitude" else {"rows_at_once": 4}
            started = time.perf_counter()
            pruned = METHODS[method](model, *calibrated, wanted, **rest)
            seconds = time.perf_counter() - started
            found = {text: perplexity(pruned.model, rows) for text, rows in tests.items()}
            uniform = uniform or found
            rows.append({
                "sparsity": share,
                "method": method,
                "arm": arm,
                "seconds": seconds,
                "achieved": pruned.achieved.total,
                "perplexity": {text: each.perplexity for text, each in found.items()},
                "less_uniform": {
                    text: paired_difference(each, uniform[text])._asdict() for text, each in found.items()
                },
                "amounts": amounts.tolist(),
            })
            print(json.dumps({key: rows[-1][key] for key in ("sparsity", "method", "arm", "perplexity")}), flush=True)
    return rows


if __name__ == "__main__":
    main(tyro.cli(Pruning, description=__doc__))
