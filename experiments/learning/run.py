"""Claim: what adapters begin with, and by which steps they learn, matter more than where their ranks lie.

    nice .venv/bin/python -m experiments.learning.run                                          # glassllm, an hour
    nice .venv/bin/python -m experiments.learning.run --model smollm2-135m --tasks arc-easy --arms uniform gradient

Two CPU cores. An arm is WAY[/OPTIMIZER][@PLAN]: a start of LoRA or another method that learns, such as lisa; what
makes steps; and how ranks are shared out, `plans.py`, equally if nothing is said. Adapters of all arms have equal
parameters, and all arms equal steps. For each task the arm's rate is chosen among the same for all, on selection
documents with seed 0, from the middle outwards while it helps; training stops early by them too. Then every seed is
trained at that rate and measured on test documents, which chose nothing. Control: `uniform`, LoRA as published, by
AdamW. Refuted for an arm where its loss is not below that of `uniform` by two standard errors over documents, with all
seeds agreeing.
"""

import time
from collections.abc import Callable
from dataclasses import asdict, dataclass, field, replace
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import tyro

from curvjax.data import (
    Document,
    Question,
    packed_rows,
    question_document,
    read_documents,
    read_task,
    split_documents,
    take,
)
from curvjax.data.demonstration import request_records
from curvjax.evaluation import perplexity, ranked_choice
from curvjax.evaluation.perplexity import clustered_mean
from curvjax.models import Decoder, Loaded, load_model
from curvjax.records import Allocation, Rebuilt, machine, versions, write_json
from curvjax.runs.adapt import TrainSettings, adapt
from curvjax.runs.rebuild import rebuild
from curvjax.runs.stages import Stages
from curvjax.runs.text import Text, TextSettings, packed_text
from curvjax.surgery import SURGERIES, LoRA
from experiments.learning.placements import step_cost
from experiments.learning.plans import plan

FOLDER = Path(__file__).parent
STARTS = ("uniform", "principal", "gradient", "curvature", "gora", "lora-ga", "eva")
OPTIMIZERS = ("allora", "lora-pro", "lamb", "dct-adamw", "noise-adaptive")


@dataclass(frozen=True, kw_only=True)
class Settings:
    """Arms and sizes."""

    model: str = "glassllm"
    """What `curvjax.load_model` takes."""
    tasks: tuple[str, ...] = ("coqa", "gsm8k", "arc-easy")
    """Stories, worked arithmetic, or questions by name."""
    arms: tuple[str, ...] = (*STARTS, *(f"uniform/{name}" for name in OPTIMIZERS))
    """WAY[/OPTIMIZER][@PLAN]."""
    seeds: tuple[int, ...] = (1, 2, 3, 4, 5)
    """Of starts and of the order of rows."""
    rates: tuple[float, ...] = (1e-3, 3e-3, 1e-2, 3e-2, 1e-1)
    """Peak rates to choose from."""
    rank: int = 4
    """Of every projection."""
    documents: tuple[int, int, int] = (240, 40, 100)
    """To train on, to select by, to test on."""
    training: TrainSettings = field(
        default_factory=lambda: TrainSettings(steps=100, select_every=20, patience=3, checkpoint_every=10_000)
    )
    """Of all arms."""
    label: str = ""
    """Ends the record's name."""
    work: Path = Path("runs/learning")
    """Where finished parts are kept."""


@dataclass(frozen=True)
class Task:
    """documents: to train on and select by, in one list. test: model -> (nats, tokens) of each test document."""

    documents: list[Document]
    test: Callable[[Decoder], tuple[list[float], list[float]]]


def main(settings: Settings) -> None:
    """All arms, and a record of each task."""
    loaded = load_model(settings.model)
    stages = Stages(settings.work / loaded.origin.name)
    about = {
        "settings": asdict(settings) | {"work": settings.work.name},
        "versions": versions(),
        "machine": machine(),
    }
    for name in settings.tasks:
        task = read(name, loaded, settings)
        before = stages(f"{name}-before", dict, asdict(settings), lambda task=task: tested(loaded.model, task))
        arms = {arm: trained(arm, name, task, loaded, settings, stages) for arm in settings.arms}
        found = {"task": name, "before": before["nll"], "arms": {arm: told(arms, arm) for arm in arms}}
        parts = [loaded.origin.name, name, *([settings.label] if settings.label else [])]
        write_json(FOLDER / f"{'_'.join(parts)}.json", about | found)
        print(table(name, found), flush=True)


def looked_at(task: Task, loaded: Loaded, settings: Settings) -> tuple[Text, Text]:
    """Training rows that plans are made by, 1024 tokens, and as many of other documents."""
    rows = TextSettings(tokens=1024, length=settings.training.length)
    documents = task.documents[: settings.documents[0]]
    half = len(documents) // 2
    first, fresh = (packed_text(part, loaded, rows, source="training") for part in (documents[:half], documents[half:]))
    return first, fresh


def read(name: str, loaded: Loaded, settings: Settings) -> Task:
    """The documents of a task, and how its test goes."""
    train, select, test = settings.documents
    if name in ("coqa", "gsm8k"):
        source = read_documents("demo:coqa") if name == "coqa" else worked_arithmetic()
        parts = split_documents(source, seed=0, counts=(train, select, test))
        rows = packed_rows(parts.test, loaded.tokenizer, length=settings.training.length).batch

        def text(model: Decoder) -> tuple[list[float], list[float]]:
            found = perplexity(model, rows)
            return found.row_nll.tolist(), found.row_tokens.tolist()

        return Task([*parts.calibration, *parts.selection], text)
    fitting = [each for each in read_task(name) if longest(each, loaded) <= settings.training.length]
    questions = split_documents(fitting, seed=0, counts=(train, select, test))
    learnt: list[Question] = [*questions.calibration, *questions.selection]

    def choice(model: Decoder) -> tuple[list[float], list[float]]:
        found = ranked_choice(model, loaded.tokenizer, questions.test, length=settings.training.length, rows_at_once=8)
        return np.asarray(found.question_gold_nll).tolist(), [1.0] * len(questions.test)

    return Task([question_document(question) for question in learnt], choice)


def longest(question: Question, loaded: Loaded) -> int:
    """Tokens of its longest choice, with what stands before it."""
    pairs = zip(question.contexts, question.continuations, strict=True)
    return max(len(loaded.tokenizer.encode(context + continuation)) for context, continuation in pairs)


def worked_arithmetic() -> list[Document]:
    """Grade-school problems with their steps."""
    records = (record["doc"] for record in request_records("gsm8k/gold_bpb_5shot"))
    return [Document(f"gsm8k/{i}", f"{doc['question']}\n{doc['answer']}") for i, doc in enumerate(records)]


def trained(arm: str, name: str, task: Task, loaded: Loaded, settings: Settings, stages: Stages) -> dict[str, Any]:
    """The rate chosen with seed 0, then every seed at it."""
    way, _, shares = arm.partition("@")
    looked = cache(lambda: looked_at(task, loaded, settings))

    @cache  # made when first needed: a finished arm measures nothing
    def shared() -> Allocation:
        return plan(shares or "uniform", loaded, settings.rank, *looked(), half_way)

    def half_way(ranks: Allocation) -> Decoder:
        half = replace(settings, training=replace(settings.training, steps=settings.training.steps // 2))
        middle = settings.rates[len(settings.rates) // 2]
        return adapted(
            way, task, loaded, ranks, half, 0, middle, stages.directory / "half-way" / f"{name}-{shares}"
        ).model

    def step() -> dict[str, float]:
        rows = take(looked()[0].batch, range(settings.training.rows))
        return step_cost(rebuild(loaded, shared(), LoRA()).model, rows)

    def run(seed: int, rate: float) -> dict[str, Any]:
        inputs = asdict(settings) | {"task": name, "arm": arm, "seed": seed, "rate": rate}
        inputs = {key: value for key, value in inputs.items() if key not in ("tasks", "arms", "seeds", "rates", "work")}
        label = f"{name}-{arm.replace('/', '-')}-{rate:g}-{seed}"
        return stages(
            label, dict, inputs, lambda: once(way, task, loaded, shared(), settings, seed, rate, label, stages)
        )

    trials = chosen_rate(lambda rate: run(0, rate)["selection"], settings.rates)
    best = min(trials, key=lambda rate: trials[rate])
    inputs = asdict(settings.training) | {"task": name, "shares": shares, "rank": settings.rank}
    return {
        "rate": best,
        "trials": trials,
        "seeds": [run(seed, best) for seed in settings.seeds],
        "step": stages(f"{name}-{shares}-step", dict, inputs, step) if way in STARTS else None,
    }


def chosen_rate(loss: Callable[[float], float], rates: tuple[float, ...]) -> dict[float, float]:
    """Losses from the middle rate outwards: up while that helps, and down where the first step up does not."""
    middle = len(rates) // 2
    trials = {rates[middle]: loss(rates[middle])}
    for side in (rates[middle + 1 :], rates[:middle][::-1]):
        last = trials[rates[middle]]
        for rate in side:
            trials[rate] = loss(rate)
            if not trials[rate] < last:
                break
            last = trials[rate]
    return trials


def once(
    way: str,
    task: Task,
    loaded: Loaded,
    ranks: Allocation,
    settings: Settings,
    seed: int,
    rate: float,
    label: str,
    stages: Stages,
) -> dict[str, Any]:
    """One training; infinite where its loss leaves the numbers."""
    started = time.perf_counter()
    try:
        found = adapted(way, task, loaded, ranks, settings, seed, rate, stages.directory / "adapters" / label)
    except ValueError as lost:  # a rate too high for this arm: a trial like any other
        if "finite" not in str(lost):
            raise
        return {"selection": 1e9, "lost": str(lost)}
    looks = found.evidence["selection"]
    spent = {"seconds": time.perf_counter() - started, "state_size": found.evidence["optimizer"]["state_size"]}
    spent |= {"total": found.total}
    return {"selection": min(looks["losses"]), "best_step": looks["best_step"]} | spent | tested(found.model, task)


def adapted(
    way: str, task: Task, loaded: Loaded, ranks: Allocation, settings: Settings, seed: int, rate: float, directory: Path
) -> Rebuilt:
    """Adapters of these ranks, or what else the way trains."""
    name, _, optimizer = way.partition("/")
    how = replace(
        settings.training,
        learning_rate=rate,
        order_seed=seed,
        selection=settings.documents[1],
        optimizer=optimizer or "adamw",
    )
    method: Any = LoRA(start=name, seed=seed) if name in STARTS else SURGERIES[name]()
    return adapt(loaded, ranks, method, task.documents, how, directory)


def tested(model: Decoder, task: Task) -> dict[str, Any]:
    """Mean nats a token, or of a right answer, and each document's."""
    nats, tokens = task.test(model)
    mean, error = clustered_mean(np.asarray(nats), np.asarray(tokens))
    return {"nll": mean, "standard_error": error, "nats": nats, "tokens": tokens}


def told(arms: dict[str, dict[str, Any]], arm: str) -> dict[str, Any]:
    """An arm for the record: its loss by seed, and its difference to `uniform` in the mean over seeds."""
    return {
        "rate": arms[arm]["rate"],
        "trials": {f"{rate:g}": loss for rate, loss in arms[arm]["trials"].items()},
        "nll": [run["nll"] for run in arms[arm]["seeds"]],
        **apart(arms[arm]["seeds"], arms["uniform"]["seeds"]),
        "best_steps": [run["best_step"] for run in arms[arm]["seeds"]],
        "total": [run["total"] for run in arms[arm]["seeds"]],
        "step": arms[arm]["step"],
    }


def apart(ours: list[dict[str, Any]], theirs: list[dict[str, Any]]) -> dict[str, Any]:
    """The difference of two arms' runs, seed by seed, and of their means over seeds with its error over documents."""
    each = np.asarray([run["nats"] for run in ours]) - np.asarray([run["nats"] for run in theirs])
    tokens = np.asarray(ours[0]["tokens"])
    difference, error = clustered_mean(each.mean(axis=0), tokens)
    by_seed = (each.sum(axis=1) / tokens.sum()).tolist()
    return {"difference": difference, "standard_error": error, "by_seed": by_seed}


def table(name: str, found: dict[str, Any]) -> str:
    """Arms by rising loss."""
    lines = [
        f"| {name} | rate | nats (before: {found['before']:.3f}) | less uniform | seeds below |",
        "|" + " --- |" * 5,
    ]
    for arm, each in sorted(found["arms"].items(), key=lambda item: np.mean(item[1]["nll"])):
        below = sum(x < 0 for x in each["by_seed"])
        lines.append(
            f"| {arm} | {each['rate']:g} | {np.mean(each['nll']):.3f} | {each['difference']:+.3f} ± "
            f"{each['standard_error']:.3f} | {below} of {len(each['by_seed'])} |"
        )
    return "\n".join(lines)


if __name__ == "__main__":
    main(tyro.cli(Settings, description=__doc__))
