"""Claim: what trained adapters are cut to is chosen better by what they change in outputs than by their matrices.

    .venv/bin/python -m experiments.learning.rerank            # after experiments.learning.run; two minutes

Adapters that `run` kept, of rank 4 on every projection, are cut to a half and to a quarter of their ranks: by one
threshold on all singular values, plain or in the metric of what each projection receives on training rows
(`cj.rerank`), or to equal ranks, each adapter by its own singular values, the control. Test documents chose nothing.
Refuted where the metric's loss is not below that of the plain threshold by two standard errors, with all seeds.
"""

from collections.abc import Callable
from dataclasses import asdict, dataclass, field
from functools import partial
from typing import Any

import numpy as np
import tyro

import curvjax as cj
from curvjax.models import Decoder, load_model
from curvjax.records import machine, versions, write_json
from curvjax.runs.adapt import load_adapter
from curvjax.runs.text import TextSettings, packed_text
from curvjax.surgery import lora_ranks
from curvjax.surgery.growing.lora import adapters
from curvjax.surgery.growing.rerank import cut, truncated
from curvjax.surgery.projections import rebuilt
from experiments.learning.run import FOLDER, Settings, apart, read, tested


@dataclass(frozen=True, kw_only=True)
class Reranking:
    """Which adapters."""

    tasks: tuple[str, ...] = ("coqa", "gsm8k")
    """Of the study."""
    starts: tuple[str, ...] = ("uniform", "gradient")
    """Of the study."""
    rate: float = 1e-2
    """That was chosen there."""
    seeds: tuple[int, ...] = (1, 2, 3)
    """Of the study."""
    shares: tuple[float, ...] = (0.5, 0.25)
    """Of the ranks, that stay."""
    tokens: int = 2048
    """Of training documents, for the metric."""
    study: Settings = field(default_factory=Settings)
    """As it was run."""


def main(settings: Reranking) -> None:
    """Every cut, and the record."""
    loaded = load_model(settings.study.model)
    study = asdict(settings.study) | {"work": settings.study.work.name}
    record: dict[str, Any] = {"settings": asdict(settings) | {"study": study}, "tasks": {}}
    for name in settings.tasks:
        task = read(name, loaded, settings.study)
        rows = TextSettings(tokens=settings.tokens, length=settings.study.training.length)
        text = packed_text(task.documents[: settings.study.documents[0]], loaded, rows, source=name)
        arms: dict[str, list[dict[str, Any]]] = {}
        for start in settings.starts:
            for seed in settings.seeds:
                label = f"{name}-{start}-{settings.rate:g}-{seed}"
                tuned = load_adapter(loaded, settings.study.work / loaded.origin.name / "adapters" / label / "adapter")
                arms.setdefault(f"{start}, whole", []).append(tested(tuned.model, task))
                for share in settings.shares:
                    for kind, model in cuts(tuned, share, text).items():
                        arms.setdefault(f"{start}, {share:g}, {kind}", []).append(tested(model(), task))
        record["tasks"][name] = {arm: told(arms, arm) for arm in arms}
        print(table(name, record["tasks"][name]), flush=True)
    write_json(FOLDER / "rerank.json", record | {"versions": versions(), "machine": machine()})


def cuts(tuned: cj.Rebuilt, share: float, text: cj.Text) -> dict[str, Callable[[], Decoder]]:
    """The model with its adapters cut, three ways."""
    total = round(share * sum(lora_ranks(tuned.model).values()))

    def equal() -> Decoder:
        found = adapters(tuned.model)
        rank = {path: round(share * each) for path, each in lora_ranks(tuned.model).items()}
        return rebuilt(
            tuned.model,
            {path: partial(truncated, cut=cut(each), rank=rank[path]) for path, each in found.items()},
        )

    return {
        "plain": lambda: cj.rerank(tuned, total).model,
        "metric": lambda: cj.rerank(tuned, total, text=text).model,
        "equal": equal,
    }


def told(arms: dict[str, list[dict[str, Any]]], arm: str) -> dict[str, Any]:
    """Losses by seed, and in the mean over seeds the difference to the plain threshold."""
    start, _, rest = arm.partition(", ")
    other = f"{start}, {rest.partition(', ')[0]}, plain" if "," in rest else arm
    return {"nll": [run["nll"] for run in arms[arm]], **apart(arms[arm], arms[other])}


def table(name: str, found: dict[str, Any]) -> str:
    """Every cut in turn."""
    lines = [f"| {name} | nats | less plain | seeds below |", "| --- | ---: | ---: | ---: |"]
    for arm, each in found.items():
        below = f"{sum(x < 0 for x in each['by_seed'])} of {len(each['by_seed'])}"
        apart = f"{each['difference']:+.3f} ± {each['standard_error']:.3f}"
        plain = arm.endswith(("plain", "whole"))
        lines.append(f"| {arm} | {np.mean(each['nll']):.3f} | {'' if plain else apart} | {'' if plain else below} |")
    return "\n".join(lines)


if __name__ == "__main__":
    main(tyro.cli(Reranking, description=__doc__))
