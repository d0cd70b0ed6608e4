"""The front door, verbs that try: amounts compared, judged, moved to equal prices, and promises against fact."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from curvjax.allocation import Bits, Program, Ranks, Sparsity
from curvjax.models import Loaded, Wrapped, require_decoder
from curvjax.records import Allocation, Comparison, Descent, Landscape, Promise, Rebuilt, Scores
from curvjax.runs import compare as _compare
from curvjax.runs import descend as _descend
from curvjax.runs import judge as _judge
from curvjax.runs import landscape as _landscape
from curvjax.runs import promise as _promise
from curvjax.runs.batches import as_text
from curvjax.runs.compare import CompareSettings
from curvjax.runs.judge import JudgeSettings
from curvjax.runs.landscape import Direction
from curvjax.runs.measure import ScoreSettings
from curvjax.runs.progress import Progress, silent
from curvjax.runs.rounds import DescendSettings
from curvjax.runs.text import Text, changed
from curvjax.scores import PLANS, SCORES
from curvjax.surgery import Surgery
from curvjax.verbs import with_validation_for

__all__ = ["compare", "descend", "judge", "landscape", "promise"]


def compare(
    model: Loaded,
    text: Text,
    program: Program,
    *,
    scores: Sequence[str] = ("gain", "gradient-norm"),
    rules: Sequence[str] = ("program", "uniform"),
    controls: Sequence[str] = ("none",),
    plans: Sequence[str] = (),
    gains: Scores | None = None,
    progress: Progress = silent,
    **settings: Any,
) -> Comparison:
    """One budget by many scores, rules and plans, and what each costs.

    Args:
      model: of `load`.
      text: calibration rows.
      program: the budget.
      scores: names of `curvjax.scores.SCORES`.
      rules: "program", and names of `curvjax.allocation.RULES`.
      controls: names of `curvjax.allocation.CONTROLS`, for the program.
      plans: names of `curvjax.scores.PLANS`.
      gains: of the same model and units, in place of measuring gains and traces again.
      progress: told (what, done, all).
      **settings: fields of `curvjax.runs.measure.ScoreSettings`.

    Returns:
      Amounts of every method in layer order, costs in gradients, rank correlations.

    Raises:
      ValueError: if a name is unknown or the budget out of reach.

    Example:
      >>> import curvjax as cj
      >>> model = cj.load("glassllm")
      >>> text = cj.read("demo:squad", model, tokens=64, length=64)
      >>> found = cj.compare(model, text, cj.Sparsity(0.5), scores=["erk", "owl"], rules=["program", "owl", "uniform"])
      >>> [method.name for method in found.methods]
      ['erk + program', 'erk + owl', 'owl + program', 'owl + owl', 'uniform']
    """
    require_decoder(model, "compare")
    asked = CompareSettings(scores=tuple(scores), rules=tuple(rules), controls=tuple(controls), plans=tuple(plans))
    SCORES.require(asked.scores)
    PLANS.require(asked.plans)
    needs = [field for name in asked.scores for field in SCORES[name].needs]
    text, validation = with_validation_for(model, text, needs)
    measured = changed(ScoreSettings, settings)
    return _compare.compare(
        model, text, program, asked, measured, validation=validation, gains=gains, progress=progress
    )


def judge(
    model: Loaded,
    comparison: Comparison,
    method: Surgery,
    text: Text,
    selection: Text,
    tests: Mapping[str, Text],
    *,
    descent: Mapping[str, Any] | None = None,
    directory: str | Path | None = None,
    progress: Progress = silent,
    **settings: Any,
) -> Comparison:
    """Every method of a comparison by what comes of it: rebuilt, tuned alike on one text, measured on others.

    Args:
      model: of `load`, dense.
      comparison: of `compare`.
      method: that rebuilds: `Wanda()`, `Nearest()`, ...
      text: calibration rows, for surgeries and prices.
      selection: rows of other documents, that choose settings.
      tests: rows of others again, by name.
      descent: fields of `curvjax.runs.rounds.DescendSettings` for the descent that is judged too.
      directory: where what was measured is kept, so that a run that was stopped goes on.
      progress: told (what, done, all).
      **settings: fields of `curvjax.runs.judge.JudgeSettings`: priced=False leaves the descent out; searches, ...

    Returns:
      The comparison with `outcomes`: arms by rising selection loss, and paired differences with standard errors.

    Raises:
      ValueError: if texts share a document, the model is another one, or the method does not take the target.

    Example:
      >>> import curvjax as cj
      >>> model = cj.load("glassllm")
      >>> names = ("squad", "boolq", "coqa")
      >>> text, other, test = (cj.read(f"demo:{name}", model, tokens=64, length=64) for name in names)
      >>> found = cj.compare(model, text, cj.Sparsity(0.5), scores=[], rules=["uniform"])
      >>> judged = cj.judge(model, found, cj.Magnitude(), text, other, {"test": test}, priced=False)
      >>> [arm.method for arm in judged.outcomes.arms]
      ['uniform']
    """
    require_decoder(model, "judge")
    chosen, steps = changed(JudgeSettings, settings), changed(DescendSettings, descent or {})
    return _judge.judge(
        model, comparison, method, text, selection, tests, chosen, steps, directory=directory, progress=progress
    )


def descend(
    model: Loaded,
    text: Text,
    selection: Text,
    program: Sparsity | Bits | Ranks,
    method: Surgery | None = None,
    *,
    start: Allocation | None = None,
    directory: str | Path | None = None,
    progress: Progress = silent,
    **settings: Any,
) -> Descent:
    """Amounts of equal measured price [M22]-[M24]: what each unit's next weight, bit or rank costs as rebuilt.

    Args:
      model: of `load`, dense.
      text: calibration rows, on which prices are measured.
      selection: rows of other documents, by which the steps are judged; test on others again.
      program: the budget and its bounds.
      method: that rebuilds, and so is priced: `Wanda()`, which is the default, `Magnitude()`, `Channels()`,
        `SparseGPT()`, and with `Sparsity(pattern=8)` those of single weights with the pattern "n:8"; of bits
        `Nearest()`, `GPTQ()`; of ranks `Factorize()`.
      start: amounts to begin with; uniform if None.
      directory: where finished steps are kept, so that a run that was stopped goes on.
      progress: told (what, done, all).
      **settings: fields of `curvjax.runs.rounds.DescendSettings`: granularity, iterations, rate, patience, ...

    Returns:
      Every step, and the `allocation` of the best; the start's if nothing beat it.

    Raises:
      ValueError: if the texts share a document, the budget is out of reach, or a price is not finite.

    Example:
      >>> import curvjax as cj
      >>> model = cj.load("glassllm")
      >>> text, other = (cj.read(f"demo:{name}", model, tokens=64, length=64) for name in ("squad", "boolq"))
      >>> found = cj.descend(model, text, other, cj.Sparsity(0.5), iterations=1)
      >>> len(found.iterates), found.allocation.rule
      (2, 'descent')
    """
    require_decoder(model, "descend")
    chosen = changed(DescendSettings, settings)
    given = {"start": start, "directory": directory, "progress": progress}
    return _descend.descend(model, text, selection, program, method, chosen, **given)


def promise(
    model: Loaded | Wrapped,
    text: Any,
    edit: Mapping[str, Any] | Rebuilt | float,
    *,
    fresh: Any = None,
    progress: Progress = silent,
    **settings: Any,
) -> Promise:
    """What an edit promises, -(g' delta + delta' C delta / 2), and (R(theta) - R(theta + delta)) / promised kept [M20].

    Args:
      model: of `load` or `wrap`, before the edit.
      text: calibration rows, of g, C and `kept`; for a model of `wrap` a batch of its own.
      edit: `{path: delta}`; what `rebuild` made; or a number, the share of |theta_k| of every unit's Newton step.
      fresh: rows of other documents, on which the decrease is measured too.
      progress: told (what, done, all).
      **settings: fields of `curvjax.runs.measure.ScoreSettings`.

    Returns:
      Each unit's part alone, all at once, and their coupling.

    Raises:
      ValueError: if it changes nothing, or no unit's parameters, or by another shape; if the texts share a document.

    Example:
      >>> import curvjax as cj
      >>> model = cj.load("glassllm")
      >>> text = cj.read("demo:squad", model, tokens=64, length=64)
      >>> all(0.9 < unit.kept < 1.1 for unit in cj.promise(model, text, 0.001).units)
      True
    """
    chosen = changed(ScoreSettings, settings)
    if isinstance(model, Wrapped):
        text, fresh = as_text(model, text), None if fresh is None else as_text(model, fresh)
    return _promise.promise(model, text, edit, chosen, fresh=fresh, progress=progress)


def landscape(
    model: Loaded | Wrapped,
    text: Any,
    first: Direction | Mapping[str, Any] | Rebuilt,
    second: Direction | Mapping[str, Any] | Rebuilt | None = None,
    *,
    span: tuple[float, float] = (-1.0, 2.0),
    points: int = 13,
    progress: Progress = silent,
    **settings: Any,
) -> Landscape:
    """The loss along a line or over a plane through the weights, and the quadratic models there [M20].

    Each point costs one forward pass through the blocks from the first moved one on.

    Args:
      model: of `load` or `wrap`, at 0.
      text: tokens of the loss; for a model of `wrap` a batch of its own.
      first: `NewtonStep`, `RitzVector`, `FilterNoise`, `{path: delta}`, or what `rebuild` made, which is then at 1.
      second: of a plane.
      span: first and last place of either axis, in units of the directions.
      points: on each axis.
      progress: told (what, done, all).
      **settings: fields of `curvjax.runs.measure.ScoreSettings`.

    Returns:
      Losses, and slope and curvature at 0 by the ggn and by the Hessian.

    Raises:
      KeyError: if a unit is not in the model.
      ValueError: if the grid is empty, or a direction changes nothing or refuses its settings.

    Example:
      >>> import curvjax as cj
      >>> model = cj.load("glassllm")
      >>> text = cj.read("demo:squad", model, tokens=64, length=64)
      >>> line = cj.landscape(model, text, cj.RitzVector("layers.3", steps=8), points=3, span=(0.0, 1.0))
      >>> len(line.losses), line.forward_passes
      (3, 0.5)
    """
    chosen = changed(ScoreSettings, settings)
    text = as_text(model, text) if isinstance(model, Wrapped) else text
    return _landscape.landscape(model, text, first, second, chosen, span=span, points=points, progress=progress)
