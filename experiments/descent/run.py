"""Claim: sparsities of equal measured price lose less than uniform ones and than those by certified gain.

    nice .venv/bin/python -m experiments.descent.run --sparsity 0.6

One process on two CPU cores: about 30 minutes a sparsity. Wanda on SmolLM2-135M; prices on 2048 tokens, steps chosen
on 4096 others, judged on 4096 test tokens of SQuAD and as many of BoolQ, none of whose documents chose anything. The
gain's exponent is chosen on the same selection tokens among as many values as its record says. What could refute it:
uniform (the start), and the program by gain. Expected at 60%: at least 20% of perplexity below the best of them.
"""

import json
from dataclasses import asdict, dataclass, field
from pathlib import Path

import numpy as np
import tyro

from curvjax.allocation import Sparsity
from curvjax.data import Document, read_documents, split_documents
from curvjax.evaluation import perplexity
from curvjax.evaluation.perplexity import clustered_mean
from curvjax.models import Loaded, load_model
from curvjax.records import Allocation, Scores, machine, versions, write_json
from curvjax.runs.allocate import allocate
from curvjax.runs.descend import DescendSettings, descend
from curvjax.runs.measure import ScoreSettings
from curvjax.runs.progress import bars
from curvjax.runs.rebuild import rebuild
from curvjax.runs.score import score
from curvjax.runs.text import Text, TextSettings, packed
from curvjax.surgery import Wanda

FOLDER = Path(__file__).parent


@dataclass(frozen=True, kw_only=True)
class Settings:
    """Sizes."""

    model: str = "smollm2-135m"
    """What `curvjax.load_model` takes."""
    sparsity: float = 0.6
    """Share of the projections' weights to remove."""
    tokens: int = 2048
    """Of calibration."""
    judged: int = 4096
    """Of selection, and of each test text."""
    kappas: tuple[float, ...] = (0.25, 0.5, 0.75, 1.0)
    """Exponents of the program by gain, chosen on the selection text."""
    descent: DescendSettings = field(default_factory=DescendSettings)
    """How far and how fast."""
    work: Path = Path("runs/descent")
    """Where finished steps are kept."""


def main(settings: Settings) -> None:
    """All arms, and the record."""
    loaded = load_model(settings.model)
    squad = split_documents(read_documents("demo:squad"), seed=0, shares=(0.4, 0.2, 0.4))
    text = rows(loaded, squad.calibration, settings.tokens, "demo:squad")
    selection = rows(loaded, squad.selection, settings.judged, "demo:squad")
    tests = {
        "squad": rows(loaded, squad.test, settings.judged, "demo:squad"),
        "boolq": rows(loaded, read_documents("demo:boolq"), settings.judged, "demo:boolq"),
    }
    program, method = Sparsity(settings.sparsity), Wanda()
    with bars() as progress:
        given = {"directory": settings.work, "progress": progress}
        found = descend(loaded, text, selection, program, method, settings.descent, **given)
        gains = by_gain(loaded, squad.calibration, settings, progress)
        arms: dict[str, Allocation] = {"uniform": allocate(gains, program, rule="uniform")}
        arms |= {f"gain {k:g}": allocate(gains, Sparsity(settings.sparsity, kappa=k)) for k in settings.kappas}
        arms["descent"] = found.allocation
        rows_of = {"dense": judged(loaded.model, tests)}
        chosen = {}
        for name, plan in arms.items():
            pruned = rebuild(loaded, plan, method, text, progress=progress, label=name).model
            chosen[name] = perplexity(pruned, selection.batch).nll
            rows_of[name] = judged(pruned, tests)
            print(name, chosen[name], {k: float(np.exp(v["nll"])) for k, v in rows_of[name].items()}, flush=True)
    best = min((name for name in chosen if name.startswith("gain")), key=chosen.__getitem__)
    record = {
        "settings": asdict(settings) | {"work": settings.work.name},
        "iterates": [{"selection_nll": each.selection_nll, "spread": each.spread} for each in found.iterates],
        "kept": found.best,
        "gradients": found.gradient_count,
        "seconds": found.origin.cost.seconds,
        "selection_nll": chosen,
        "best_gain": best,
        "perplexity": {name: {k: float(np.exp(v["nll"])) for k, v in row.items()} for name, row in rows_of.items()},
        "descent_less": {
            name: {k: less(rows_of["descent"][k], rows_of[name][k]) for k in tests} for name in ("uniform", best)
        },
        "shares": dict(zip(found.allocation.amounts, found.allocation.shares.tolist(), strict=True)),
        "versions": versions(),
        "machine": machine(),
    }
    write_json(FOLDER / f"record_{100 * settings.sparsity:g}.json", record)
    print(json.dumps(record["perplexity"], indent=1))


def rows(loaded: Loaded, documents: list[Document], tokens: int, source: str) -> Text:
    """Rows of 256 tokens."""
    return packed(documents, loaded, TextSettings(tokens=tokens), source=source)


def by_gain(loaded: Loaded, documents: list[Document], settings: Settings, progress) -> Scores:
    """Certified gains as the demonstration measures them: 256 tokens, a gap of 10%."""
    text = rows(loaded, documents, 256, "demo:squad")
    return score(loaded, text, settings=ScoreSettings(rtol=0.1), directory=settings.work, progress=progress)


def judged(model, tests: dict[str, Text]) -> dict[str, dict]:
    """Mean nats a token of each test text, with its rows."""
    found = {name: perplexity(model, text.batch) for name, text in tests.items()}
    return {name: {"nll": each.nll, "rows": each.row_nll, "tokens": each.row_tokens} for name, each in found.items()}


def less(ours: dict, theirs: dict) -> dict[str, float]:
    """Paired difference in nats a token, with its standard error over rows."""
    difference, error = clustered_mean(ours["rows"] - theirs["rows"], ours["tokens"])
    return {"difference": float(difference), "standard_error": float(error)}


if __name__ == "__main__":
    main(tyro.cli(Settings, description=__doc__))
