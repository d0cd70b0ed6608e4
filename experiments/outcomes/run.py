"""Claim: measured prices share out a budget better than every published rival, all tuned alike, and than searches.

    nice .venv/bin/python -m experiments.outcomes.run --target sparsity --budgets 0.6 0.7 0.5
    nice .venv/bin/python -m experiments.outcomes.run --target bits --budgets 3

Two CPU cores: about an hour a budget. SmolLM2-135M; scores look at 512 tokens, surgeries at 16384, prices at 2048 of
these a round, settings and steps are chosen on 2048 others, and all arms are measured on 4096 test tokens of SQuAD and
as many of BoolQ. Every method with a setting has it chosen among five values. What could refute it: any arm that loses
less on the tests.
"""

from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal, NamedTuple

import tyro

from curvjax.allocation import PROGRAMS
from curvjax.data import Document, read_documents, split_documents
from curvjax.models import Loaded, load_model
from curvjax.records import Comparison
from curvjax.runs.compare import CompareSettings, compare, measured_for
from curvjax.runs.judge import JudgeSettings, judge
from curvjax.runs.measure import ScoreSettings
from curvjax.runs.progress import bars
from curvjax.runs.rounds import DescendSettings
from curvjax.runs.text import Text, TextSettings, packed_text
from experiments.methods import surgery_named

FOLDER = Path(__file__).parent
SCORES = {
    "sparsity": (
        "gain", "trace", "gradient-norm", "fisher-trace", "layer-card-resnorm", "owl", "dlp", "lsa", "alphapruning",
        "shortgpt",
    ),
    "bits": ("gain", "trace", "fisher-trace", "layer-card-resnorm"),
    "rank": ("fisher-trace", "layer-card-resnorm"),
}  # fmt: skip
RULES = {
    "sparsity": ("program", "owl", "uniform", "atp"),
    "bits": ("program", "uniform"),
    "rank": ("program", "uniform"),
}
METHODS = {"sparsity": "wanda", "bits": "nearest", "rank": "factorize"}
PLANS = {
    "sparsity": ("lamp", "wanda-global", "gradient-global"),
    "bits": ("autoscheme", "dynamic-quant", "hawq", "radio"),
    "rank": ("welore",),
}


@dataclass(frozen=True, kw_only=True)
class Settings:
    """What is shared out, and how much is looked at."""

    model: str = "smollm2-135m"
    """What `curvjax.load_model` takes."""
    target: Literal["sparsity", "bits", "rank"] = "sparsity"
    """Of the program."""
    budgets: tuple[float, ...] = (0.6,)
    """Shares to remove, mean bits, or mean ranks of factors, weighted by parameters."""
    pattern: int = 0
    """Of sparsity: shares n / PATTERN only, for a method of the pattern n:PATTERN."""
    method: str = ""
    """The surgery, with settings after a slash, r-sparse/ratio=1; that of `METHODS` if empty."""
    evidence: int = 512
    """Tokens that scores look at."""
    tokens: int = 16384
    """Of calibration: for surgeries, and for prices, a portion a round."""
    selected: int = 2048
    """Of selection."""
    tested: int = 4096
    """Of each test text."""
    length: int = 256
    """Of a row."""
    seed: int = 0
    """Of the split and of the order of documents."""
    scores: tuple[str, ...] = ()
    """Scores that are compared; those of `SCORES` if none are named."""
    rules: tuple[str, ...] = ()
    """Rules for each; those of `RULES` if none are named."""
    planned: bool = True
    """Also `PLANS`, which need no score."""
    judged: JudgeSettings = field(default_factory=lambda: JudgeSettings(evaluations=60, searches=("evopress",)))
    descent: DescendSettings = field(default_factory=DescendSettings)
    measured: ScoreSettings = field(default_factory=lambda: ScoreSettings(rtol=0.1))
    work: Path = Path("runs/outcomes")
    """Where finished parts are kept."""
    label: str = ""
    """Ends the names of records: of another model, or of other scores, than those that bear the plain name."""


def main(settings: Settings) -> None:
    """All budgets, and a record of each."""
    loaded = load_model(settings.model)
    texts = read_texts(loaded, settings)
    method = surgery_named(settings.method or METHODS[settings.target])
    chosen = CompareSettings(
        scores=settings.scores or SCORES[settings.target],
        rules=settings.rules or RULES[settings.target],
        plans=PLANS[settings.target] if settings.planned else (),
    )
    with bars() as progress:
        common = {"validation": texts.validation, "progress": progress}
        own = {"pattern": settings.pattern} if settings.pattern else {}
        programs = [PROGRAMS[settings.target](budget, **own) for budget in settings.budgets]
        found = measured_for(loaded, texts.evidence, chosen, settings.measured, programs[0], **common)
        for budget, program in zip(settings.budgets, programs, strict=True):
            compared = compare(loaded, texts.evidence, program, chosen, settings.measured, found=found, **common)
            where = settings.work / f"{settings.target}-{method.name}-{budget:g}-{settings.seed}"
            read = {"text": texts.text, "selection": texts.selection, "tests": texts.tests}
            judged = judge(
                loaded, compared, method, **read, settings=settings.judged, descent=settings.descent, directory=where,
                progress=progress,
            )  # fmt: skip
            amount = 100 * budget if budget < 1 else budget
            name = f"{settings.target}_{method.name}_{amount:g}_{settings.tokens}_seed{settings.seed}"
            judged.save(FOLDER / f"{'_'.join(filter(None, (name, settings.label)))}.json")
            print(table(judged), flush=True)


class Texts(NamedTuple):
    """evidence, validation: of scores. text: of calibration. selection, tests: of other documents."""

    evidence: Text
    validation: Text
    text: Text
    selection: Text
    tests: dict[str, Text]


def read_texts(loaded: Loaded, settings: Settings) -> Texts:
    """SQuAD, split by document, and BoolQ to test on."""
    squad = split_documents(read_documents("demo:squad"), seed=settings.seed, shares=(0.4, 0.2, 0.4))
    third = len(squad.calibration) // 3
    return Texts(
        evidence=rows(loaded, squad.calibration[third:], settings.evidence, settings.length),
        validation=rows(loaded, squad.calibration[:third], settings.evidence, settings.length),
        text=rows(loaded, squad.calibration[third:], settings.tokens, settings.length),
        selection=rows(loaded, squad.selection, settings.selected, settings.length),
        tests={
            "squad": rows(loaded, squad.test, settings.tested, settings.length),
            "boolq": rows(loaded, read_documents("demo:boolq"), settings.tested, settings.length),
        },
    )


def rows(loaded: Loaded, documents: list[Document], tokens: int, length: int) -> Text:
    """Rows of so many tokens."""
    return packed_text(documents, loaded, TextSettings(tokens=tokens, length=length), source="demo")


def table(comparison: Comparison) -> str:
    """The arms by rising selection loss, with test perplexities and what each cost."""
    found = comparison.outcomes
    assert found is not None
    lines = [
        f"| arm | setting | selection, nats | {' | '.join(found.tests)} | gradients |",
        f"| --- | --- | {'---: | ' * (len(found.tests) + 2)}",
    ]
    evidence = {method.name: method.gradient_equivalents for method in comparison.methods}
    for arm in found.arms:
        perplexities = " | ".join(f"{arm.test[name].perplexity:.1f}" for name in found.tests)
        value = "" if arm.value is None else f"{arm.tuned} {arm.value:g}"
        cost = evidence.get(arm.method, 0.0) + arm.search_gradients
        lines.append(f"| {arm.method} | {value} | {arm.selection_nll:.3f} | {perplexities} | {cost:.0f} |")
    return "\n".join(lines)


if __name__ == "__main__":
    main(tyro.cli(Settings, description=__doc__))
