"""Claim: at equal bits a quantiser that fits outputs, by steps or in windows, loses less than GPTQ or rounding.

    nice .venv/bin/python -m experiments.quantisers.run
    nice .venv/bin/python -m experiments.quantisers.run --arms experiments/outcomes/bits_nearest_3_16384_seed0.json

Unequal widths as well: those of the arm of a comparison that lost least, or --plans allocation.json.

Two CPU cores, hours, most of them those of `qvlm` and `sliderquant`; goes on where it was stopped. SmolLM2-135M, all
projections on grids of groups of 64: equal widths of 3 and of 4 bits, and plans given, each by every method. A seed
draws the calibration documents (SQuAD), and is that of the method where it has one; tests are 4096 tokens of other
documents of SQuAD and as many of BoolQ, the same for all. Control: `nearest`, which looks at no text. Refuted for a
method where its loss is not below that of `nearest` by two standard errors over rows, on both texts and with every
seed.
"""

import time
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import tyro

from curvjax.data import Splits, read_documents, sample, split_documents
from curvjax.evaluation import paired_difference, perplexity
from curvjax.models import Decoder, Loaded, load_model
from curvjax.records import Allocation, Comparison, TextOutcome, machine, plain, versions, write_json
from curvjax.runs.evaluate import text_outcome
from curvjax.runs.stages import Stages
from curvjax.runs.text import Text, TextSettings, packed_text
from curvjax.surgery import Surgery
from experiments.methods import surgery_named

FOLDER = Path(__file__).parent
CONTROL = "nearest"


@dataclass(frozen=True, kw_only=True)
class Settings:
    """Arms and sizes."""

    model: str = "smollm2-135m"
    """What `curvjax.load_model` takes."""
    methods: tuple[str, ...] = (
        "nearest",
        "gptq",
        "gptq/act_order=false",
        "rsq",
        "rsq/weighted=false",
        "adaquant",
        "qvlm",
    )
    """Surgeries that round, with settings after a slash: gptq/act_order=false/damping=0.01."""
    means: tuple[int, ...] = (3, 4)
    """Equal widths."""
    plans: tuple[Path, ...] = ()
    """Allocations of unequal widths, allocation.json."""
    arms: tuple[Path, ...] = ()
    """Records of compared bits, of which the arm of least selection loss gives widths."""
    seeds: tuple[int, ...] = (0, 1, 2)
    """Of the calibration documents, and of methods that have one."""
    data: str = "demo:squad"
    """Documents to calibrate on and, others of them, to test on."""
    other: str = "demo:boolq"
    """Another text to test on."""
    tokens: int = 2048
    """To calibrate on."""
    tested: int = 4096
    """Of each text."""
    length: int = 256
    """Of a row."""
    group: int = 64
    """Inputs that share a scale."""
    work: Path = Path("runs/quantisers")
    """Where finished parts are kept."""
    out: str = "record.json"
    """The record's name."""


@dataclass(frozen=True)
class Arm:
    """A model as rounded. tests: by text. planned, realised: mean bits of a weight, without scales and zeros.

    stored: mean bits of a weight with them. seconds: of the surgery, compilation included.
    """

    tests: dict[str, TextOutcome]
    planned: float = 0.0
    realised: float = 0.0
    stored: float = 0.0
    seconds: float = 0.0


def main(settings: Settings) -> None:
    """Every arm, and the record after each."""
    loaded = load_model(settings.model)
    stages = Stages(settings.work / loaded.origin.name)
    squad = split_documents(read_documents(settings.data), seed=0, shares=(0.5, 0.0, 0.5))
    rows = TextSettings(tokens=settings.tested, length=settings.length)
    tests = {
        settings.data: packed_text(squad.test, loaded, rows, source=settings.data),
        settings.other: packed_text(read_documents(settings.other), loaded, rows, source=settings.other),
    }
    about = {
        "settings": plain(asdict(settings))
        | {"work": settings.work.name, "plans": [p.name for p in settings.plans]}
        | {"arms": [p.name for p in settings.arms]},
        "model": plain(loaded.origin),
        "texts": plain([test.origin for test in tests.values()]),
        "versions": versions(),
        "machine": machine(),
    }
    shared = {
        "model": loaded.sha256,
        "tests": plain([test.origin for test in tests.values()]),
        "group": settings.group,
    }
    dense = stages("dense", Arm, shared, lambda: Arm(tested(loaded.model, tests)))
    arms: dict[str, dict[str, dict[int, Arm]]] = {}
    for plan, widths in widths_of(loaded, settings).items():
        arms[plan] = {}
        for name in with_control(settings.methods):
            reads = surgery_named(name, group=settings.group).reads_text
            for seed in settings.seeds if reads else settings.seeds[:1]:
                text = calibration(loaded, squad, settings, seed) if reads else None
                method = surgery_named(name, group=settings.group, seed=seed)
                key = shared | {
                    "method": name,
                    "settings": asdict(method),
                    "widths": widths,
                    "text": None if text is None else plain(text.origin),
                }

                def compute(method=method, widths=widths, text=text) -> Arm:
                    return rounded(loaded, method, widths, text, tests)

                label = f"{plan}-{name}-{seed}-{settings.tokens}" if reads else f"{plan}-{name}"
                label = label.replace("/", "-")
                arms[plan].setdefault(name, {})[seed] = stages(label, Arm, key, compute)
                told = {each: result(found) for each, found in arms.items()}
                write_json(FOLDER / settings.out, about | {"dense": plain(dense), "result": told})
        print(table(plan, dense, arms[plan]), flush=True)


def with_control(methods: tuple[str, ...]) -> tuple[str, ...]:
    """The methods, the control first."""
    return (CONTROL, *(name for name in methods if name != CONTROL))


def widths_of(loaded: Loaded, settings: Settings) -> dict[str, dict[str, int]]:
    """Widths by unit, of each plan by its name."""
    layers = range(len(loaded.model.layers))
    found = {f"{mean}": {f"layers.{layer}": mean for layer in layers} for mean in settings.means}
    for path in settings.plans:
        allocation = Allocation.load(path)
        allocation.require_target(("bits",), need="rounding needs")
        allocation.origin.require_model(loaded.sha256, source=str(path))
        found[f"{path.parent.name}-{path.stem}"] = allocation.amounts
    for path in settings.arms:
        compared = Comparison.load(path)
        if compared.target != "bits" or compared.outcomes is None:
            raise ValueError(
                f"{path} has no judged arms of bits: give a record of experiments.outcomes, --target bits."
            )
        compared.origin.require_model(loaded.sha256, source=str(path))
        first = compared.outcomes.arms[0]
        found[f"{first.method}-{path.stem}"] = first.amounts
    return found


def calibration(loaded: Loaded, squad: Splits, settings: Settings, seed: int) -> Text:
    """Rows of the calibration documents in the order of a seed."""
    documents = sample(squad.calibration, len(squad.calibration), seed=seed)
    return packed_text(
        documents, loaded, TextSettings(tokens=settings.tokens, length=settings.length), source=settings.data
    )


def rounded(
    loaded: Loaded, method: Surgery, widths: Mapping[str, int], text: Text | None, tests: Mapping[str, Text]
) -> Arm:
    """One model rounded and measured."""
    started = time.perf_counter()
    found = method(loaded.model, widths, None if text is None else text.batch)
    seconds = time.perf_counter() - started
    units = found.evidence["storage"]["units"]
    weights = sum(unit["weights"] for unit in units)
    planned = sum(widths[unit["name"]] * unit["weights"] for unit in units) / weights
    stored = found.evidence["storage"]["bits_per_weight"]
    return Arm(tested(found.model, tests), planned, found.total / weights, stored, seconds)


def tested(model: Decoder, tests: Mapping[str, Text]) -> dict[str, TextOutcome]:
    """Each text's loss."""
    return {name: text_outcome(perplexity(model, text.batch)) for name, text in tests.items()}


def result(arms: Mapping[str, Mapping[int, Arm]]) -> dict[str, Any]:
    """The arms of a plan for the record: each seed's, with nats a token less those of the control on the same rows."""
    (control,) = arms[CONTROL].values()
    return {
        name: {
            str(seed): plain(arm)
            | {
                "less_nearest": {
                    text: plain(paired_difference(outcome, control.tests[text])._asdict())
                    for text, outcome in arm.tests.items()
                }
            }
            for seed, arm in seeds.items()
        }
        for name, seeds in arms.items()
    }


def table(plan: str, dense: Arm, arms: Mapping[str, Mapping[int, Arm]]) -> str:
    """A plan's methods and seeds: perplexity, and nats a token less `nearest` with the standard error over rows."""
    texts = list(dense.tests)
    (control,) = arms[CONTROL].values()
    lines = [
        f"| {plan} | seed | bits, planned = realised | stored | {' | | '.join(texts)} | | seconds |",
        "| --- |" + " ---: |" * (4 + 2 * len(texts)),
        "| dense | | | | " + " | ".join(f"{dense.tests[text].perplexity:.2f} | " for text in texts) + "| |",
    ]
    for name, seeds in arms.items():
        for seed, arm in seeds.items():
            cells = []
            for text in texts:
                less = paired_difference(arm.tests[text], control.tests[text])
                apart = "" if name == CONTROL else f"{less.difference:+.3f} ± {less.standard_error:.3f}"
                cells.append(f"{arm.tests[text].perplexity:.2f} | {apart}")
            bits = f"{arm.planned:.3f}" if arm.planned == arm.realised else f"{arm.planned:.3f}, {arm.realised:.3f}"
            lines.append(f"| {name} | {seed} | {bits} | {arm.stored:.3f} | {' | '.join(cells)} | {arm.seconds:.0f} |")
    return "\n".join(lines)


if __name__ == "__main__":
    main(tyro.cli(Settings, description=__doc__))
