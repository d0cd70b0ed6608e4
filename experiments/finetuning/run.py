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

from curvjax.artefacts import Record, machine, versions, write_record
from curvjax.data import Question, question_document, read_task, split_documents
from curvjax.evaluation import Choice, paired_choice, ranked_choice
from curvjax.evaluation.perplexity import clustered_mean
from curvjax.models import Decoder, Loaded, load_model
from curvjax.runs.adapt import AdaptSettings, adapt
from curvjax.runs.allocate import allocate
from curvjax.runs.program import AllocateSettings
from curvjax.runs.progress import silent
from curvjax.runs.score import ScoreSettings, score
from curvjax.runs.settings import BASELINES, Arm
from curvjax.runs.stages import Stages
from curvjax.surgery import count_lora

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
    adapt: AdaptSettings = field(default_factory=lambda: AdaptSettings(steps=16, checkpoint_every=16, expert_rank=4))
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
    how = ScoreSettings(rtol=0.1, tokens=256)
    gains = score(loaded, train, how, settings.work, source=f"task:{settings.task}", progress=silent)
    stages = Stages(settings.work / "stages")
    base = stages("base", {"test": [q.id for q in parts.test]}, lambda: tested(loaded.model, loaded, parts.test))
    arms = []
    for seed in settings.seeds:
        for target, budget in (("rank", settings.rank), ("experts", settings.experts)):
            for arm in BASELINES:
                plan = AllocateSettings(target=target, budget=budget, baseline=BASELINES[arm], seed=seed)
                allocation = allocate(gains, plan)
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
    write_record(FOLDER / "record.json", record)


def trained(
    loaded: Loaded,
    allocation: Record,
    train: list[Any],
    test: list[Question],
    settings: Finetuning,
    stages: Stages,
    *,
    arm: Arm,
    seed: int,
) -> Record:
    """One arm: its adapters trained, counted and tested, once."""
    how = replace(settings.adapt, seed=seed)
    name = f"{allocation['target']}-{arm}-{seed}"
    inputs = {
        "allocation": allocation["units"],
        "adapt": asdict(how),
        "train": [d.id for d in train],
        "test": len(test),
    }

    def compute() -> Record:
        model = adapt(loaded, allocation, train, how, settings.work / name, progress=silent)
        return {"parameters": count_lora(model)} | tested(model, loaded, test)

    found = stages(name, inputs, compute)
    amounts = [unit["amount"] for unit in allocation["units"]]
    labels = {"target": allocation["target"], "arm": arm, "seed": seed, "amounts": amounts}
    return labels | {"seconds": stages.seconds[name]} | found


def tested(model: Decoder, loaded: Loaded, questions: list[Question]) -> Record:
    """Accuracy and -log p, with their columns."""
    found: Choice = ranked_choice(model, loaded.tokenizer, questions, rows_at_once=8)
    fields = ("accuracy", "accuracy_standard_error", "gold_nll", "gold_nll_standard_error", *METRICS.values())
    return {name: getattr(found, name) for name in fields}


def against(arm: Record, arms: list[Record]) -> list[Record]:
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


def pooled(arms: list[Record]) -> list[Record]:
    """Differences to uniform in the mean over seeds: errors over questions, and the range over seeds."""
    rows = []
    for target in dict.fromkeys(arm["target"] for arm in arms):
        by_arm = {name: [a for a in arms if (a["target"], a["arm"]) == (target, name)] for name in BASELINES}
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
