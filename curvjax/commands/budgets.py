"""Commands that share out a budget, and the one that lists all methods."""

from dataclasses import dataclass, field, fields, replace
from pathlib import Path
from typing import Annotated, Any, ClassVar

import tyro
from rich.table import Table

from curvjax.allocation import CONTROLS, PROGRAMS
from curvjax.allocation.rules import RULES
from curvjax.commands.printed import allocation_lines, allocation_table, show, tell
from curvjax.commands.rebuilding import METHOD
from curvjax.commands.scoring import TARGET, Argument, Flat
from curvjax.data import read_documents, split_documents
from curvjax.records import Allocation, Scores, read_json
from curvjax.report import arms_table, comparison_figure, comparison_table, descent_figure, refusals, save_figure
from curvjax.runs.allocate import PROGRAM, allocate
from curvjax.runs.compare import CompareSettings, compare
from curvjax.runs.depth import DEPTH_PLANS
from curvjax.runs.descend import DescendSettings, descend
from curvjax.runs.judge import JudgeSettings, judge
from curvjax.runs.measure import ScoreSettings
from curvjax.runs.open import ModelSettings, open_parameters
from curvjax.runs.progress import bars
from curvjax.runs.text import TextSettings, judged_texts, packed_text, read, with_validation
from curvjax.scores import PLANS, SCORES
from curvjax.surgery import SURGERIES
from curvjax.surgery.method import require_target
from curvjax.surgery.prices import has_prices
from curvjax.training import OPTIMIZERS


@dataclass(frozen=True)
class Allocate:
    """Turn scores into budgets: LoRA ranks, experts, sparsities or bits -> allocation.json."""

    choices: ClassVar = (TARGET,)

    scores: Argument[Path]
    """gains.json, or another file, of `curvjax score`."""
    out: Path = Path("allocation.json")
    """Where the allocation goes."""
    target: str = "rank"
    """What units receive, or a program of it by name; its settings are flags too (`--target sparsity --help`)."""
    score: str = ""
    """A column measured beside the gain: gradient-norm, trace. Empty: the scores themselves."""
    rule: str = PROGRAM
    """How scores become amounts: program (the package's), uniform, or a published rule; `curvjax methods`."""
    rule_setting: float | None = None
    """A published rule's own setting, as `compare --outcome` chose it: owl's spread, atp's part. None: as published."""
    control: str = "none"
    """What is done to the scores before: permuted, reversed, random; what a score must beat."""
    seed: int = 0
    """Of the controls."""
    best: int = 0
    """Of ranks: only so many units, those of the largest scores, receive any; needs --minimum 0. 0: all."""
    from_layer: int = 0
    """Of ranks: only units of this layer and those above receive any; training needs no backward pass below."""

    def __call__(self) -> None:
        """Run the command."""
        program: Any = self.program  # ty: ignore[missing-attribute] added by `with_choices`
        scores = Scores.load(self.scores)
        scores = scores.column(self.score) if self.score else scores
        how = {"rule": self.rule, "rule_setting": self.rule_setting, "control": self.control, "seed": self.seed}
        found = allocate(scores, with_costs(program), **how, best=self.best, from_layer=self.from_layer)
        found.save(self.out)
        show(allocation_table(found))
        for line in allocation_lines(found):
            print(line)
        tell(self.out)


@dataclass(frozen=True)
class Compare:
    """Share out one budget by any published scores and rules -> compare.json, and a heat map.

    With --outcome every method is rebuilt and measured as well: exponents, spreads and slopes chosen among as many
    values for each on selection texts, the best measured on test texts, paired with the others on the same rows.
    """

    choices: ClassVar = (TARGET._replace(default="sparsity"), METHOD._replace(prefix="method"))

    model: Argument[str]
    """As for `curvjax score`."""
    data: str = "demo:squad"
    """Calibration text; as for `curvjax score`."""
    gains: Path | None = None
    """gains.json of `curvjax score`, in place of measuring gains and traces again."""
    out: Path = Path("runs/compare")
    """Directory for compare.json, compare.svg and compare.png."""
    target: str = "sparsity"
    """What units receive; its settings are flags too."""
    outcome: bool = False
    """Also rebuild and measure every method, and the descent by measured prices; hours, resumable."""
    method: str = "wanda"
    """What rebuilds, for --outcome; its settings are flags after a dot, such as --method.rows."""
    tests: tuple[str, ...] = ("demo:boolq",)
    """Texts to measure on, for --outcome, beside the test documents of --data."""
    test_tokens: int = 8192
    """Of each."""
    reading: Annotated[ModelSettings, Flat] = field(default_factory=ModelSettings)
    text: Annotated[TextSettings, Flat] = field(default_factory=TextSettings)
    settings: Annotated[CompareSettings, Flat] = field(default_factory=CompareSettings)
    measured: Annotated[ScoreSettings, Flat] = field(default_factory=ScoreSettings)
    judged: Annotated[JudgeSettings, tyro.conf.arg(name="outcomes")] = field(default_factory=JudgeSettings)

    def __call__(self) -> None:
        """Run the command."""
        program: Any = self.program  # ty: ignore[missing-attribute] added by `with_choices`
        surgery: Any = self.surgery  # ty: ignore[missing-attribute] added by `with_choices`
        SCORES.require(self.settings.scores)
        PLANS.require(self.settings.plans)
        gains, measured = None if self.gains is None else Scores.load(self.gains), self.measured
        if self.outcome:
            require_target(surgery, program.target)
            measured = replace(measured, group=getattr(surgery, "group", measured.group))
        path = self.out / "compare.json"
        with bars() as progress:
            loaded = open_parameters(self.model, begin_of_text=self.reading.begin_of_text)
            texts = judged_texts(loaded, self.data, self.tests, self.text, self.test_tokens) if self.outcome else None
            text = read(self.data, loaded, self.text) if texts is None else texts.scored
            text, validation = with_validation(text, loaded, self.text)
            record = compare(
                loaded,
                text,
                with_costs(program),
                self.settings,
                measured,
                validation=validation,
                gains=gains,
                path=path,
                progress=progress,
            )
            if texts is not None:
                parts = texts.calibration, texts.selection, texts.tests
                record = judge(loaded, record, surgery, *parts, self.judged, directory=self.out, progress=progress)
                record.save(path)
        show(comparison_table(record))
        if record.outcomes is not None:
            show(arms_table(record, record.outcomes))
        for reason in refusals(record):
            print(reason)
        tell(path, *save_figure(comparison_figure(record), self.out, "compare"))


def _priced(kind: type) -> bool:
    return any(has_prices(kind, program.target) for program in PROGRAMS.values())


@dataclass(frozen=True)
class Descend:
    """Share out sparsity, bits or ranks by prices measured at the rebuilt model -> allocation.json, descent.json.

    Each round measures what one more weight removed, or one step of N:M, width or rank, costs in every unit of the
    model as it is rebuilt then, and moves the budget to where it buys most; the look of least loss on selection texts
    is kept. A run that was killed goes on to the same numbers.
    """

    choices: ClassVar = (TARGET._replace(default="sparsity"), METHOD._replace(prefix="method", fitting=_priced))

    model: Argument[str]
    """As for `curvjax score`."""
    data: str = "demo:squad"
    """Text that is split by document: two thirds to measure prices on, one third to select by."""
    target: str = "sparsity"
    """What units receive: sparsity (also N:M, with --pattern 8 --method.pattern n:8), bits, or rank, of factors: there
    the budget is a mean rank, s sum(in out) / sum(in + out) for a share s of the parameters. Its settings are flags."""
    method: str = "wanda"
    """What rebuilds, and so is priced: by one gradient a round where it takes single weights or channels in an order,
    else by measured moves (with rsq, --method.no-rotate). Its settings are flags after a dot, as --method.group."""
    start: Path | None = None
    """allocation.json to begin with; uniform without."""
    out: Path = Path("runs/descent")
    """Directory for allocation.json, descent.json, descent.svg and descent.png."""
    selection_tokens: int = 4096
    """Tokens to select by."""
    reading: Annotated[ModelSettings, Flat] = field(default_factory=ModelSettings)
    text: Annotated[TextSettings, Flat] = field(default_factory=lambda: TextSettings(tokens=2048))
    settings: Annotated[DescendSettings, Flat] = field(default_factory=DescendSettings)

    def __call__(self) -> None:
        """Run the command."""
        program: Any = self.program  # ty: ignore[missing-attribute] added by `with_choices`
        method: Any = self.surgery  # ty: ignore[missing-attribute] added by `with_choices`
        start = None if self.start is None else Allocation.load(self.start)
        documents = read_documents(self.data)
        parts = split_documents(documents, seed=self.text.text_seed, shares=(2 / 3, 1 / 3, 0.0))
        much = replace(self.text, tokens=self.selection_tokens)
        with bars() as progress:
            loaded = open_parameters(self.model, begin_of_text=self.reading.begin_of_text)
            text = packed_text(parts.calibration, loaded, self.text, source=self.data)
            selection = packed_text(parts.selection, loaded, much, source=self.data)
            given = {"start": start, "directory": self.out, "progress": progress}
            found = descend(loaded, text, selection, program, method, self.settings, **given)
        paths = found.allocation.save(self.out / "allocation.json"), found.save(self.out / "descent.json")
        first, best = found.iterates[0], found.iterates[found.best]
        gained = first.selection_nll - best.selection_nll
        kept = f"look {found.best} of {len(found.iterates) - 1}" if found.best else "the start, which nothing beat"
        print(f"kept {kept}: {gained:.4f} nats a token below the start on selection texts")
        print(f"{found.gradient_count:.3g} gradients of the whole model went into prices")
        for each in found.checks:
            print(f"{each.unit}: price {each.price:.3g} nats a weight, by central difference {each.slope:.3g}")
        tell(*paths, *save_figure(descent_figure(found), self.out, "descent"))


@dataclass(frozen=True)
class Methods:
    """List what can be named with its sources: scores, plans, programs, rules, controls, methods, optimisers."""

    def __call__(self) -> None:
        """Run the command."""
        table = Table("kind", "name", "of", "source, or what it does")
        for name, score in SCORES.items():
            table.add_row("score", name, ", ".join(score.needs), score.source)
        for name, plan in PLANS.items():
            table.add_row("plan", name, plan.target, plan.source)
        for name, rule in RULES.items():
            table.add_row("rule", name, ", ".join(rule.targets), _first_line(rule.of))
        for name, control in CONTROLS.items():
            table.add_row("control", name, "", _first_line(control))
        for name, program in PROGRAMS.items():
            table.add_row("program", name, program.target, _first_line(program))
        for name, surgery in SURGERIES.items():
            table.add_row("method", name, ", ".join(surgery.targets), _first_line(surgery))
        for name, by in OPTIMIZERS.items():
            table.add_row("optimizer", name, "", _first_line(by))
        for name, depth in DEPTH_PLANS.items():
            table.add_row("depth plan", name, "layers", _first_line(depth))
        show(table)


def with_costs(program: Any) -> Any:
    """The program, with the costs of a JSON file {unit: cost} where `cost` is the path of one.

    Raises:
      ValueError: if there is no such file, or it holds something else.
    """
    if "costs" not in {each.name for each in fields(program)} or program.cost in ("parameters", "flops", "units"):
        return program
    path = Path(program.cost)
    if not path.is_file():
        msg = f"no table of costs at {path}; cost is 'parameters', 'flops', 'units', or a JSON file of {{unit: cost}}."
        raise ValueError(msg)
    table = read_json(path)
    numbers = isinstance(table, dict) and all(type(cost) in (int, float) for cost in table.values())
    if not numbers:
        msg = f"{path} must be a JSON object {{unit: cost}} with a number for each unit."
        raise ValueError(msg)
    return replace(program, cost=path.stem, costs=table)


def _first_line(thing: Any) -> str:
    return (thing.__doc__ or "").strip().partition("\n")[0]
