"""The front door: what `import curvjax` offers as verbs, over the values of `curvjax.records`."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Literal

from curvjax.allocation import Bits, Program, Sparsity
from curvjax.data import read_documents
from curvjax.interop import save_peft
from curvjax.models import BeginOfText, Loaded
from curvjax.records import Allocation, Comparison, Descent, Outcome, Promise, Rebuilt, Scores
from curvjax.runs import adapt as _adapt
from curvjax.runs import compare as _compare
from curvjax.runs import descend as _descend
from curvjax.runs import evaluate as _evaluate
from curvjax.runs import judge as _judge
from curvjax.runs import promise as _promise
from curvjax.runs import refine as _refine
from curvjax.runs.allocate import allocate
from curvjax.runs.compare import CompareSettings
from curvjax.runs.evaluate import EvaluateSettings
from curvjax.runs.evidence import OF_TWO_TEXTS
from curvjax.runs.judge import JudgeSettings
from curvjax.runs.measure import ScoreSettings
from curvjax.runs.open import open_model
from curvjax.runs.progress import Progress, silent
from curvjax.runs.rebuild import Saved, rebuild
from curvjax.runs.rebuild import save as save_forms
from curvjax.runs.rounds import DescendSettings
from curvjax.runs.score import score as _score
from curvjax.runs.text import Text, TextSettings, changed, read, with_validation
from curvjax.runs.transfer import transfer
from curvjax.scores import PLANS, SCORES
from curvjax.surgery import LoRA, Surgery

__all__ = [
    "adapt",
    "allocate",
    "compare",
    "descend",
    "evaluate",
    "judge",
    "load",
    "promise",
    "read",
    "rebuild",
    "refine",
    "save",
    "score",
    "transfer",
]


def load(path: str | Path, *, begin_of_text: BeginOfText = "tokenizer") -> Loaded:
    """A model and its tokenizer, from a file, a directory, a checkpoint of ours, or an installed package.

    Args:
      path: Hugging Face directory (config.json, safetensors, tokenizer.json), GGUF file, checkpoint of a plain or a
        rebuilt model, or `smollm2-135m`, `glassllm` where their packages are installed.
      begin_of_text: whether texts begin with the tokenizer's first token: as its files ask for, "always" or "never".

    Returns:
      Model, tokenizer, configuration, name.

    Raises:
      FileNotFoundError: if there is nothing at `path`.
      ValueError: if what is there is of no known kind, damaged, or its tokenizer does not belong to its model.

    Example:
      >>> import curvjax as cj
      >>> cj.load("glassllm").config.num_layers
      4
    """
    return open_model(path, begin_of_text=begin_of_text)


def score(
    model: Loaded,
    text: Text,
    name: str = "gain",
    *,
    fresh: Text | None = None,
    directory: str | Path | None = None,
    progress: Progress = silent,
    **settings: Any,
) -> Scores:
    """One score of every unit of a model, in layer order; by default the certified gain [M4], [M5].

    Args:
      model: of `load`.
      text: calibration rows, of `read`.
      name: of `curvjax.scores.SCORES`: gain, gradient-norm, owl, ...
      fresh: rows of other documents on which the steps behind the gains are tried too [M20].
      directory: where finished units are kept, so that a run that was stopped goes on; None: nowhere.
      progress: told (what, done, all).
      **settings: fields of `curvjax.runs.measure.ScoreSettings`: granularity, curvature, policy, damping, rtol, ...

    Returns:
      Scores with bounds where they are certified, what was measured, and where it comes from.

    Raises:
      ValueError: if the score or a setting is unknown, the texts share a document, or something is not finite.

    Example:
      >>> import curvjax as cj
      >>> model = cj.load("glassllm")
      >>> text = cj.read("demo:squad", model, tokens=64, length=64)
      >>> gains = cj.score(model, text, rtol=0.2)
      >>> bool((gains.lower <= gains.upper).all())
      True
    """
    chosen = changed(ScoreSettings(), settings)
    SCORES.require([name])
    text, judging = _with_validation(model, text, SCORES[name].needs)
    given: dict[str, Any] = {"validation": judging, "fresh": fresh, "directory": directory, "progress": progress}
    return _score(model, text, name, chosen, **given)


def refine(
    model: Loaded, text: Text, gains: Scores, program: Program, *, progress: Progress = silent, **settings: int
) -> Scores:
    """Tighter bounds of exactly those units whose whole amount is still open, until all are proved [M19].

    Args:
      model: that the gains are of.
      text: that the gains are of.
      gains: certified gains, best with a large `rtol`.
      program: ranks or experts at equal costs.
      progress: told (what, done, all).
      **settings: fields of `curvjax.runs.refine.RefineSettings`: products, stride, longest.

    Returns:
      The gains, with `refined` saying what it took.

    Raises:
      ValueError: if model, text or curvature are not those of `gains`, or the program cannot be certified.

    Example:
      >>> import curvjax as cj
      >>> model = cj.load("glassllm")
      >>> text = cj.read("demo:squad", model, tokens=64, length=64)
      >>> gains = cj.score(model, text, rtol=0.5)
      >>> cj.refine(model, text, gains, cj.Experts(3)).refined.open
      0
    """
    chosen = changed(_refine.RefineSettings(), settings)
    return _refine.refine(model, text, gains, program, chosen, progress=progress)


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
    asked = CompareSettings(scores=tuple(scores), rules=tuple(rules), controls=tuple(controls), plans=tuple(plans))
    SCORES.require(asked.scores)
    PLANS.require(asked.plans)
    needs = [field for name in asked.scores for field in SCORES[name].needs]
    text, validation = _with_validation(model, text, needs)
    measured = changed(ScoreSettings(), settings)
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
    chosen, steps = changed(JudgeSettings(), settings), changed(DescendSettings(), descent or {})
    return _judge.judge(
        model, comparison, method, text, selection, tests, chosen, steps, directory=directory, progress=progress
    )


def descend(
    model: Loaded,
    text: Text,
    selection: Text,
    program: Sparsity | Bits,
    method: Surgery | None = None,
    *,
    start: Allocation | None = None,
    directory: str | Path | None = None,
    progress: Progress = silent,
    **settings: Any,
) -> Descent:
    """Amounts of equal measured price [M22]-[M24]: what each unit's next weight or bit costs at the model as rebuilt.

    Args:
      model: of `load`, dense.
      text: calibration rows, on which prices are measured.
      selection: rows of other documents, by which the steps are judged; test on others again.
      program: the budget and its bounds.
      method: that rebuilds, and so is priced: `Wanda()`, which is the default, `Magnitude()`, `Channels()`; of bits
        `Nearest()`, `GPTQ()`.
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
    chosen = changed(DescendSettings(), settings)
    given = {"start": start, "directory": directory, "progress": progress}
    return _descend.descend(model, text, selection, program, method, chosen, **given)


def promise(
    model: Loaded,
    text: Text,
    edit: Mapping[str, Any] | Rebuilt | float,
    *,
    fresh: Text | None = None,
    progress: Progress = silent,
    **settings: Any,
) -> Promise:
    """What an edit promises, -(g' delta + delta' C delta / 2), and (R(theta) - R(theta + delta)) / promised kept [M20].

    Args:
      model: of `load`, before the edit.
      text: calibration rows, of g, C and `kept`.
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
    return _promise.promise(model, text, edit, changed(ScoreSettings(), settings), fresh=fresh, progress=progress)


def adapt(
    model: Loaded,
    allocation: Allocation,
    data: str | Path,
    directory: str | Path,
    *,
    method: Surgery | None = None,
    progress: Progress = silent,
    **settings: Any,
) -> Rebuilt:
    """Adapters of the allocated ranks or experts, trained on text; goes on where it was killed, to the same numbers.

    Args:
      model: the base model.
      allocation: ranks or experts.
      data: training text, or prompts and completions; as for `read`.
      directory: receives adapter/, checkpoints and metrics.jsonl.
      method: `LoRA()`, which is the default, or `LoRAMixture()`.
      progress: told (what, done, all).
      **settings: fields of `curvjax.runs.adapt.TrainSettings`: steps, rows, length, learning_rate, ...

    Returns:
      The adapted model, as planned.

    Raises:
      ValueError: if the allocation is of another target or model, or a setting is unknown or does not fit.

    Example:
      >>> import curvjax as cj, tempfile
      >>> model = cj.load("glassllm")
      >>> text = cj.read("demo:squad", model, tokens=64, length=64)
      >>> ranks = cj.allocate(cj.score(model, text, "erk"), cj.Ranks(2))
      >>> with tempfile.TemporaryDirectory() as folder:
      ...     tuned = cj.adapt(model, ranks, "demo:squad", folder, steps=2, length=32, rows=2, warmup=0)
      >>> len(tuned.evidence["losses"])
      2
    """
    chosen = changed(_adapt.TrainSettings(), settings)
    documents = read_documents(str(data))
    return _adapt.adapt(model, allocation, method or LoRA(), documents, chosen, directory, progress=progress)


def evaluate(
    model: Loaded | Rebuilt,
    texts: Sequence[str] = (),
    tasks: Sequence[str] = (),
    *,
    adapter: str | Path | None = None,
    shots: int = 0,
    progress: Progress = silent,
    **settings: int,
) -> Outcome:
    """Perplexity on texts and ranked-choice accuracy on tasks, with standard errors.

    Args:
      model: of `load`, `rebuild` or `adapt`.
      texts: sources, as for `read`.
      tasks: names: arc-easy, sciq, piqa, ...
      adapter: directory of an adapter of `adapt` to put on it.
      shots: solved examples before each question.
      progress: told (what, done, all).
      **settings: fields of `curvjax.runs.evaluate.EvaluateSettings`: tokens, length, questions, rows, ...

    Returns:
      Outcomes by name.

    Raises:
      ValueError: if there is nothing to evaluate on, or a source or a setting is unknown.

    Example:
      >>> import curvjax as cj
      >>> model = cj.load("glassllm")
      >>> cj.evaluate(model, ["demo:squad"], tokens=128, length=64).texts["demo:squad"].tokens > 100
      True
    """
    if isinstance(model, Rebuilt):
        model = model.source._replace(model=model.model, config=model.model.config)
    chosen = changed(EvaluateSettings(), settings)
    return _evaluate.evaluate(model, texts, tasks, chosen, adapter=adapter, shots=shots, progress=progress)


def save(
    rebuilt: Rebuilt,
    directory: str | Path,
    *,
    format: Literal["curvjax", "peft"] = "curvjax",
    allocation: Allocation | None = None,
) -> Saved | Path:
    """Write a rebuilt model: in all forms that can hold it, or its adapters for PEFT.

    Args:
      rebuilt: of `rebuild` or `adapt`; tokenizer, chat template and all else beside the original's weights go along.
      directory: new or empty.
      format: "curvjax": a dense Hugging Face directory where one exists, a checkpoint of ours, and the records; "peft":
        adapter_config.json and adapter_model.safetensors.
      allocation: written beside it, with the budget realised.

    Returns:
      What was written where.

    Raises:
      FileExistsError: if the directory holds something.
      ValueError: if the model has no adapters for PEFT.

    Example:
      >>> import curvjax as cj, tempfile
      >>> model = cj.load("glassllm")
      >>> text = cj.read("demo:squad", model, tokens=64, length=64)
      >>> ranks = cj.allocate(cj.score(model, text, "erk"), cj.Ranks(2))
      >>> lora = cj.rebuild(model, ranks, cj.LoRA())
      >>> with tempfile.TemporaryDirectory() as folder:
      ...     cj.save(lora, f"{folder}/lora", format="peft").name
      'lora'
    """
    if format == "peft":
        save_peft(rebuilt.model, directory, base=rebuilt.source.name)
        return Path(directory)
    return save_forms(rebuilt, directory, allocation=allocation)


def _with_validation(model: Loaded, text: Text, needs: Sequence[str]) -> tuple[Text, Text | None]:
    """The text, or where a score meets the gradient of a second one, two parts of it that share no document."""
    if not OF_TWO_TEXTS & set(needs):
        return text, None
    origin = text.origin
    return with_validation(text, model, TextSettings(tokens=origin.length * origin.sequences, length=origin.length))
