"""Do ranks and experts by certified gain learn more than uniform ones, at equal parameters?

Command:   .venv/bin/python -m experiments.finetuning.run          (about 25 minutes on two cores; resumes)
Model:     SmolLM2-135M; gains of 256 tokens of the training questions, brackets of 10%.
Arms:      LoRA of mean rank 8, and LoRA experts of rank 4, two per layer in the mean, on all projections; each by gain,
           uniform, and by permuted gains; seeds of starts, order of rows and permutation alike.
Measured:  accuracy and -log p(right answer) on other questions; each arm against the uniform one of its seed, question
           by question.
Expected:  by gain below uniform below permuted in -log p, by more than two standard errors.
Control:   permuted gains. If they do as well as gains, the order of the layers does not matter.
"""

from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
import tyro

from curvjax.allocation import Experts, Ranks
from curvjax.data import Question, question_document, read_task, split_documents
from curvjax.evaluation import RankedChoice, paired_choice, ranked_choice
from curvjax.evaluation.perplexity import clustered_mean
from curvjax.models import Decoder, Loaded, load_model
from curvjax.records import Allocation, machine, versions, write_json
from curvjax.runs.adapt import TrainSettings, adapt
from curvjax.runs.allocate import allocate
from curvjax.runs.compare_adapters import ARMS
from curvjax.runs.measure import ScoreSettings
from curvjax.runs.score import score
from curvjax.runs.stages import Stages
from curvjax.runs.text import TextSettings, packed_text
from curvjax.surgery import LoRA, LoRAMixture, count_lora

FOLDER = Path(__file__).parent
METRICS = {"gold_nll": "question_gold_nll", "accuracy": "correct"}


@dataclass(frozen=True, kw_only=True)
class Finetuning:
    """Arms and sizes."""

    model: str = "smollm2-135m"
    """What `curvjax.load_model` takes."""
    task: str = "arc-easy"
    """Questions to learn and to answer."""
    train_questions: int = 300
    """Questions to train on."""
    test_questions: int = 270
    """Questions to test on."""
    seeds: tuple[int, ...] = (1, 2, 3)
    """Of starts, order of rows and permutation."""
    rank: float = 8.0
    """Mean rank of LoRA."""
    experts: float = 2.0
    """Mean number of experts, of half that rank."""
    adapt: TrainSettings = field(default_factory=lambda: TrainSettings(steps=16, checkpoint_every=16))
    """How all arms are trained."""
    work: Path = Path("runs/finetuning")
    """Where finished arms are kept."""


def main(settings: Finetuning) -> None:
    """All arms, and the record."""
    loaded = load_model(settings.model)
    parts = split_documents(
        read_task(settings.task), seed=0, counts=(settings.train_questions, 0, settings.test_questions)
    )
    train = [question_document(question) for question in parts.calibration]
    text = packed_text(train, loaded, TextSettings(tokens=256), source=f"task:{settings.task}")
    gains = score(loaded, text, settings=ScoreSettings(rtol=0.1), directory=settings.work)
    stages = Stages(settings.work / "stages")
    base = stages("base", dict, {"test": [q.id for q in parts.test]}, lambda: tested(loaded.model, loaded, parts.test))
    arms = []
    for seed in settings.seeds:
        for program in (Ranks(settings.rank), Experts(settings.experts)):
            for arm, (rule, control) in ARMS.items():
                allocation = allocate(gains, program, rule=rule, control=control, seed=seed)
                arms.append(trained(loaded, allocation, train, parts.test, settings, stages, arm=arm, seed=seed))
                print(
                    {k: arms[-1][k] for k in ("target", "arm", "seed", "parameters", "accuracy", "gold_nll")},
                    flush=True,
                )
    columns = set(METRICS.values())
    record = {
        "settings": asdict(settings) | {"work": settings.work.name},
        "base": {key: value for key, value in base.items() if key not in columns},
        "arms": [{key: value for key, value in arm.items() if key not in columns} for arm in arms],
        "against_uniform": [row for arm in arms if arm["arm"] != "uniform" for row in against(arm, arms)],
        "pooled": pooled(arms),
        "versions": versions(),
        "machine": machine(),
    }
    write_json(FOLDER / "record.json", record)


def trained(
    loaded: Loaded,
    allocation: Allocation,
    train: list[Any],
    test: list[Question],
    settings: Finetuning,
    stages: Stages,
    *,
    arm: str,
    seed: int,
) -> dict[str, Any]:
    """One arm: its adapters trained, counted and tested, once."""
    how = replace(settings.adapt, order_seed=seed)
    method = LoRA(seed=seed) if allocation.target == "rank" else LoRAMixture(rank=4, seed=seed)
    name = f"{allocation.target}-{arm}-{seed}"
    inputs = {
        "amounts": allocation.amounts,
        "method": asdict(method),
        "adapt": asdict(how),
        "train": [d.id for d in train],
        "test": len(test),
    }

    def compute() -> dict[str, Any]:
        model = adapt(loaded, allocation, method, train, how, settings.work / name).model
        return {"parameters": count_lora(model)} | tested(model, loaded, test)

    found = stages(name, dict, inputs, compute)
    labels = {"target": allocation.target, "arm": arm, "seed": seed, "amounts": list(allocation.amounts.values())}
    return labels | {"seconds": stages.seconds[name]} | found


def tested(model: Decoder, loaded: Loaded, questions: list[Question]) -> dict[str, Any]:
    """Accuracy and -log p, with their columns."""
    found: RankedChoice = ranked_choice(model, loaded.tokenizer, questions, rows_at_once=8)
    fields = ("accuracy", "accuracy_standard_error", "gold_nll", "gold_nll_standard_error", *METRICS.values())
    return {name: getattr(found, name) for name in fields}


def against(arm: dict[str, Any], arms: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """One arm less the uniform one of its target and seed, by metric."""
    other = next(a for a in arms if (a["target"], a["arm"], a["seed"]) == (arm["target"], "uniform", arm["seed"]))
    rows = []
    for metric, column in METRICS.items():
        ours, theirs = (np.asarray(each[column]) for each in (arm, other))
        mean, error = clustered_mean(ours.astype(float) - theirs, np.ones(ours.size))
        labels = {"target": arm["target"], "arm": arm["arm"], "seed": arm["seed"], "metric": metric}
        p_value = {"p_value": paired_choice(ours, theirs).p_value} if metric == "accuracy" else {}
        rows.append(labels | {"difference": mean, "standard_error": error} | p_value)
    return rows


def pooled(arms: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """Differences to uniform in the mean over seeds: errors over questions, and the range over seeds."""
    rows = []
    for target in dict.fromkeys(arm["target"] for arm in arms):
        by_arm = {name: [a for a in arms if (a["target"], a["arm"]) == (target, name)] for name in ARMS}
        for name in ("curvature", "permuted"):
            for metric, column in METRICS.items():
                ours, theirs = (np.asarray([a[column] for a in by_arm[x]], float) for x in (name, "uniform"))
                mean, error = clustered_mean((ours - theirs).mean(axis=0), np.ones(ours.shape[1]))
                seeds = (ours - theirs).mean(axis=1).tolist()
                labels = {"target": target, "arm": name, "metric": metric}
                rows.append(labels | {"difference": mean, "standard_error": error, "by_seed": seeds})
    return rows


if __name__ == "__main__":
    main(tyro.cli(Finetuning, description=__doc__))
