"""`judge`: every method of a comparison rebuilt, tuned alike on selection texts, and measured on test texts."""

import time
from collections.abc import Callable, Mapping
from dataclasses import replace
from pathlib import Path

import jax
import msgspec
import numpy as np
from jaxtyping import Float

from curvjax.allocation import CONTROLS
from curvjax.allocation.rules import RULES
from curvjax.allocation.tuned import Tuned
from curvjax.evaluation import paired_difference, perplexity
from curvjax.models import Loaded, require_plain
from curvjax.records import Arm, Comparison, Method, Outcomes, Pair, TextOutcome, Trial, digest, plain
from curvjax.runs.allocate import PROGRAM, program_of, share_out
from curvjax.runs.court import ChosenAmounts, Court, JudgeSettings, selection_loss
from curvjax.runs.descend import descend
from curvjax.runs.draft import drafts, rebuilt_readable
from curvjax.runs.evaluate import known, text_outcome
from curvjax.runs.measure import unit_shapes
from curvjax.runs.progress import Progress, silent
from curvjax.runs.rebuild import require_counted
from curvjax.runs.rounds import DescendSettings, Memory
from curvjax.runs.searches import searched
from curvjax.runs.text import Text, require_apart
from curvjax.surgery import Surgery
from curvjax.surgery.method import require_target
from curvjax.surgery.projections import kernel_units

UNIFORM = "uniform"
DESCENT = "descent"


def judge(
    loaded: Loaded,
    comparison: Comparison,
    surgery: Surgery,
    text: Text,
    selection: Text,
    tests: Mapping[str, Text],
    settings: JudgeSettings | None = None,
    descent: DescendSettings | None = None,
    *,
    directory: str | Path | None = None,
    progress: Progress = silent,
) -> Comparison:
    """Every method of a comparison by what comes of it: rebuilt, tuned on selection texts, measured on test texts.

    A method with a setting (an exponent, a spread, a slope) has it chosen among as many values as all the others, by
    the loss on the selection texts, on drafts (see `drafts`); its best amounts are rebuilt by the surgery itself and
    measured once on the tests.

    Args:
      loaded: the dense model.
      comparison: methods, of `compare`, with their scores.
      surgery: that rebuilds: `Wanda()`, `Nearest()`, ...
      text: calibration rows, for surgeries and prices.
      selection: rows of other documents, that choose settings and steps.
      tests: rows of others again, by name.
      settings: what else is judged.
      descent: how far and how fast the descent goes.
      directory: where what was measured is kept, so that a run that was stopped goes on.
      progress: told of the methods done.

    Returns:
      The comparison with its `outcomes`.

    Raises:
      ValueError: if texts share a document, the model is another one, or the surgery does not take the target;
        if it could build nothing at all, why not.
    """
    settings = settings or JudgeSettings()
    require_plain(loaded.model)
    comparison.origin.require_model(loaded.sha256, source="the comparison")
    require_apart(calibration=text, selection=selection, **dict(tests))
    require_target(surgery, comparison.target)
    court = _court(loaded, comparison, surgery, text, selection, tests, settings, directory)
    dense = _measured(court, None)  # first: texts that the model cannot read are refused before long work
    extra: list[tuple[str, Callable[[], ChosenAmounts]]] = [
        (name, lambda name=name: searched(court, name)) for name in settings.searches
    ]
    if settings.priced:
        extra.append((DESCENT, lambda: _descended(court, descent or DescendSettings(), directory, progress)))
    work = [
        (method.name, lambda method=method: _tuned(court, method, comparison)) for method in _methods(comparison)
    ] + extra
    refused = {method.name: method.refused for method in comparison.methods if method.refused is not None}
    arms = []
    for done, (name, choose) in enumerate(work):
        progress("methods judged", done, len(work))
        try:
            arms.append(_arm(court, choose()))
        except ValueError as refusal:  # hours of measuring are not lost to one method
            refused[name] = str(refusal)
    progress("methods judged", len(work), len(work))
    if not arms:
        (name, reason), *_ = refused.items()
        msg = f"{surgery.name} was refused for all {len(refused)} methods, nothing is judged; for {name}: {reason}"
        raise ValueError(msg)
    arms.sort(key=lambda arm: arm.selection_nll)
    outcomes = Outcomes(
        surgery=surgery.name,
        settings=plain(surgery),
        selection=selection.origin,
        tests={name: test.origin for name, test in tests.items()},
        dense=dense,
        arms=tuple(arms),
        paired=tuple(_pairs(arms)),
        refused=refused,
    )
    return replace(comparison, outcomes=outcomes)


def _court(
    loaded: Loaded,
    comparison: Comparison,
    surgery: Surgery,
    text: Text,
    selection: Text,
    tests: Mapping[str, Text],
    settings: JudgeSettings,
    directory: str | Path | None,
) -> Court:
    program = program_of(comparison)
    require_counted(program, surgery)
    units = kernel_units(loaded.model, [unit.name for unit in comparison.units])
    shapes = unit_shapes(loaded.model, units)
    posed = program.pose(shapes)
    origins = {name: each.origin for name, each in {"text": text, "selection": selection, **tests}.items()}
    key = digest({"model": loaded.sha256, "surgery": [surgery.name, plain(surgery)], "texts": plain(origins)})
    return Court(
        loaded=loaded,
        program=program,
        surgery=surgery,
        units=units,
        shapes=shapes,
        posed=posed,
        text=text,
        selection=selection,
        tests=tests,
        draft=drafts(
            surgery, loaded.model, text.batch, units, lambda x: posed.rounded(x).amount, target=program.target
        ),
        memory=Memory(None if directory is None else Path(directory) / "judged.partial.json", key),
        settings=settings,
        gradient_seconds=comparison.gradient_seconds,
    )


def _methods(comparison: Comparison) -> list[Method]:
    """Those that shared out the budget, uniform among them."""
    found = [method for method in comparison.methods if method.refused is None]
    if all(method.rule != UNIFORM for method in found):
        found.append(Method(name=UNIFORM, score=None, rule=UNIFORM))
    return found


def _tuned(court: Court, method: Method, comparison: Comparison) -> ChosenAmounts:
    """A method at the setting of least selection loss."""
    program, rule = court.program, RULES.get(method.rule)
    tuned: Tuned | None = getattr(program, "tuned", None) if method.rule == PROGRAM else rule and rule.tuned
    if method.rule != PROGRAM and rule is None:  # a plan derives its amounts at once
        return _tried(court, method.name, None, [(None, np.asarray(method.amounts))])
    score = next((score for score in comparison.scores if score.name == method.score), None)
    values = np.ones(len(court.shapes)) if score is None else np.asarray(score.values, np.float64)
    values = CONTROLS[method.control](values, jax.random.key(court.settings.seed))

    def amounts(value: float | None) -> Float[np.ndarray, " K"]:
        if tuned is None or value is None:
            return share_out(court.posed, program, values, method.rule).whole.amount
        if method.rule == PROGRAM:
            changed = replace(program, **{tuned.name: value})
            return share_out(changed.pose(court.shapes), changed, values, PROGRAM).whole.amount
        return share_out(court.posed, program, values, method.rule, **{tuned.name: value}).whole.amount

    settings: tuple[float | None, ...] = tuned.values if tuned else (None,)
    return _tried(court, method.name, tuned and tuned.name, [(value, amounts(value)) for value in settings])


def _tried(
    court: Court, name: str, tuned: str | None, candidates: list[tuple[float | None, Float[np.ndarray, " K"]]]
) -> ChosenAmounts:
    trials, seconds = [], 0.0
    for value, amounts in candidates:
        loss, spent = selection_loss(court, amounts)
        trials.append(Trial(value=value, selection_nll=loss))
        seconds += spent
    best = int(np.argmin([trial.selection_nll for trial in trials]))
    return ChosenAmounts(name, tuned, tuple(trials), court.named(candidates[best][1]), seconds)


def _descended(
    court: Court, settings: DescendSettings, directory: str | Path | None, progress: Progress
) -> ChosenAmounts:
    """The descent; its seconds are those of its first run."""
    texts = (court.text, court.selection)
    where = None if directory is None else Path(directory) / DESCENT
    began = time.perf_counter()
    found = descend(court.loaded, *texts, court.program, court.surgery, settings, directory=where, progress=progress)
    best = found.iterates[found.best]
    about = [plain(settings), plain(court.program)]
    _, seconds = court.memory("descent", about, lambda: (best.selection_nll, time.perf_counter() - began))
    trials = (Trial(value=None, selection_nll=best.selection_nll),)
    return ChosenAmounts(DESCENT, None, trials, dict(found.allocation.amounts), seconds)


def _arm(court: Court, choice: ChosenAmounts) -> Arm:
    return Arm(
        method=choice.name,
        tuned=choice.tuned,
        trials=choice.trials,
        amounts=choice.amounts,
        selection_nll=min(trial.selection_nll for trial in choice.trials),
        test=_measured(court, choice.amounts),
        search_gradients=choice.seconds / court.gradient_seconds,
    )


def _measured(court: Court, amounts: dict[str, int] | None) -> dict[str, TextOutcome]:
    """The model as the surgery rebuilds it, on every test text; the dense model for None."""

    def compute() -> dict[str, TextOutcome]:
        model, rows = court.loaded.model, court.settings.rows
        if amounts is not None:
            model = rebuilt_readable(court.surgery, model, court.text.batch, amounts)
        return {
            name: text_outcome(perplexity(model, test.batch, rows_at_once=rows)) for name, test in court.tests.items()
        }

    return msgspec.convert(court.memory("test", amounts, compute), dict[str, TextOutcome])


def _pairs(arms: list[Arm]) -> list[Pair]:
    """Every arm against uniform, if that was built, and the arm of least selection loss against all others."""
    uniform = next((arm for arm in arms if arm.method == UNIFORM), None)
    couples = [(arm, uniform) for arm in arms if uniform is not None and arm is not uniform]
    couples += [(arms[0], arm) for arm in arms[1:] if arms[0] is not uniform and arm is not uniform]
    return [_pair(arm, other, test) for arm, other in couples for test in arm.test]


def _pair(arm: Arm, other: Arm, test: str) -> Pair:
    apart = paired_difference(arm.test[test], other.test[test])
    return Pair(
        arm=arm.method, against=other.method, seed=0, metric=test, difference=apart.difference,
        standard_error=known(apart.standard_error),
    )  # fmt: skip
