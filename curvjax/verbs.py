"""The front door: what `import curvjax` offers as verbs, over the values of `curvjax.records`."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any, Literal

from curvjax.allocation import Program
from curvjax.data import read_documents
from curvjax.interop import save_peft
from curvjax.interop.compressed_tensors import Serve
from curvjax.models import BeginOfText, Loaded, Wrapped, require_decoder
from curvjax.records import Allocation, LayerCard, Outcome, Promise, Rebuilt, Scores
from curvjax.runs import adapt as _adapt
from curvjax.runs import card as _card
from curvjax.runs import evaluate as _evaluate
from curvjax.runs import refine as _refine
from curvjax.runs.allocate import allocate
from curvjax.runs.batches import as_text, require_measurable, split_sequences
from curvjax.runs.evaluate import EvaluateSettings
from curvjax.runs.evidence import OF_TWO_TEXTS
from curvjax.runs.export import export_codes, require_own_weights
from curvjax.runs.export_settings import Coded, ExportSettings, require_options
from curvjax.runs.measure import ScoreSettings
from curvjax.runs.open import open_model
from curvjax.runs.placement import AdapterTrials
from curvjax.runs.progress import Progress, silent
from curvjax.runs.rebuild import Saved, rebuild
from curvjax.runs.rebuild import save as save_forms
from curvjax.runs.rerank import rerank
from curvjax.runs.score import score as _score
from curvjax.runs.stored_names import require_stored_names
from curvjax.runs.text import Text, TextSettings, changed, read, with_validation
from curvjax.runs.transfer import transfer
from curvjax.scores import SCORES
from curvjax.surgery import Surgery
from curvjax.training import OPTIMIZERS, Optimizer

__all__ = [
    "adapt",
    "allocate",
    "evaluate",
    "layer_card",
    "load",
    "read",
    "rebuild",
    "refine",
    "rerank",
    "save",
    "score",
    "transfer",
]


def load(path: str | Path, *, begin_of_text: BeginOfText = "tokenizer") -> Loaded:
    """A model and its tokenizer, from a file, a directory, a checkpoint of ours, or an installed package.

    Args:
      path: Hugging Face directory (config.json, safetensors, tokenizer.json), `hf:owner/name[@revision]`, GGUF file,
        checkpoint of a plain or a rebuilt model, or `smollm2-135m`, `glassllm` where their packages are installed.
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
    model: Loaded | Wrapped,
    text: Any,
    name: str = "gain",
    *,
    fresh: Any = None,
    directory: str | Path | None = None,
    progress: Progress = silent,
    **settings: Any,
) -> Scores:
    """One score of every unit of a model, in layer order; by default the certified gain [M4], [M5].

    Args:
      model: of `load`, or of `wrap`.
      text: calibration rows, of `read`; for a model of `wrap` a batch of its own.
      name: of `curvjax.scores.SCORES`: gain, gradient-norm, owl, ...
      fresh: rows of other documents on which the steps behind the gains are tried too [M20].
      directory: where finished units are kept, so that a run that was stopped goes on; None: nowhere. Not for a model
        of `wrap`, whose functions cannot be told from others.
      progress: told (what, done, all).
      **settings: fields of `curvjax.runs.measure.ScoreSettings`: granularity, curvature, policy, damping, rtol, ...

    Returns:
      Scores with bounds where they are certified, what was measured, and where it comes from.

    Raises:
      ValueError: if the score or a setting is unknown, the texts share a document, or something is not finite; if a
        wrapped model is not what `wrap` asks for, or the score needs a decoder.

    Example:
      >>> import curvjax as cj
      >>> model = cj.load("glassllm")
      >>> text = cj.read("demo:squad", model, tokens=64, length=64)
      >>> gains = cj.score(model, text, rtol=0.2)
      >>> bool((gains.lower <= gains.upper).all())
      True
    """
    chosen = changed(ScoreSettings, settings)
    SCORES.require([name])
    if isinstance(model, Wrapped):
        require_measurable(model, name, chosen, directory)
        text, fresh = as_text(model, text), None if fresh is None else as_text(model, fresh)
    text, judging = with_validation_for(model, text, SCORES[name].needs)
    given: dict[str, Any] = {"validation": judging, "fresh": fresh, "directory": directory, "progress": progress}
    return _score(model, text, name, chosen, **given)


def layer_card(
    model: Loaded,
    text: Text,
    *,
    rank: int = 8,
    tried: Scores | Promise | AdapterTrials | None = None,
    fresh: Text | None = None,
    progress: Progress = silent,
    **settings: Any,
) -> LayerCard:
    """The Layer Card: what each unit has to correct, what adapting it costs, and what came of moving it.

    Args:
      model: of `load`.
      text: calibration rows.
      rank: of the adapters whose cost is counted.
      tried: for the outcome: `AdapterTrials()`, adapters trained in each unit alone; or, at no training, gains whose
        steps were tried, or a `promise` of any edit.
      fresh: rows of other documents, for what trained adapters do on them.
      progress: told (what, done, all).
      **settings: fields of `curvjax.runs.measure.ScoreSettings`.

    Returns:
      The card: residual norm, energy, coupling, counted costs, and the decrease of the loss where it was tried.

    Raises:
      ValueError: if the rank or a setting is out of range, what was tried is of another model or other units, or fresh
        rows share a document with the text, or have nothing to judge.

    Example:
      >>> import curvjax as cj
      >>> model = cj.load("glassllm")
      >>> text = cj.read("demo:squad", model, tokens=64, length=64)
      >>> cj.layer_card(model, text, rank=4).units[0].cost.optimizer_bytes
      73696
    """
    require_decoder(model, "layer_card")
    chosen = changed(ScoreSettings, settings)
    return _card.layer_card(model, text, chosen, rank=rank, tried=tried, fresh=fresh, progress=progress)


def refine(
    model: Loaded | Wrapped, text: Any, gains: Scores, program: Program, *, progress: Progress = silent, **settings: int
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
    chosen = changed(_refine.RefineSettings, settings)
    text = as_text(model, text) if isinstance(model, Wrapped) else text
    return _refine.refine(model, text, gains, program, chosen, progress=progress)


def adapt(
    model: Loaded,
    allocation: Allocation,
    data: str | Path,
    directory: str | Path,
    *,
    method: Surgery | None = None,
    optimizer: Optimizer | str = "adamw",
    progress: Progress = silent,
    **settings: Any,
) -> Rebuilt:
    """Adapters of the allocated ranks or experts, trained on text; goes on where it was killed, to the same numbers.

    Args:
      model: the base model.
      allocation: ranks or experts.
      data: training text, or prompts and completions; as for `read`.
      directory: receives adapter/, checkpoints and metrics.jsonl.
      method: `LoRA(start="gradient")`, which is the default, `LoRAMixture()`, `Factorize()`, or another
        `surgery.Learning`.
      optimizer: `LAMB()`, `LoRAPro()`, ..., or its name.
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
    require_decoder(model, "adapt")
    by = OPTIMIZERS.named(optimizer)() if isinstance(optimizer, str) else optimizer
    chosen = changed(_adapt.TrainSettings, settings | {"optimizer": by.name})
    documents, how = read_documents(str(data)), method or _adapt.ADAPTERS
    return _adapt.adapt(model, allocation, how, documents, chosen, directory, optimizer=by, progress=progress)


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
    require_decoder(model, "evaluate")
    if isinstance(model, Rebuilt):
        model = model.source._replace(model=model.model, config=model.model.config)
    chosen = changed(EvaluateSettings, settings)
    return _evaluate.evaluate(model, texts, tasks, chosen, adapter=adapter, shots=shots, progress=progress)


def save(
    rebuilt: Rebuilt,
    directory: str | Path,
    *,
    format: Literal["curvjax", "peft", Coded] = "curvjax",
    allocation: Allocation | None = None,
    serve: Serve = "any",
    gguf: str | Path = "",
    round_to: int = 0,
) -> Saved | Path:
    """Write a rebuilt model: in all forms that can hold it, its adapters for PEFT, or its codes for other programs.

    Args:
      rebuilt: of `rebuild` or `adapt`; tokenizer, chat template and all else beside the original's weights go along.
      directory: new or empty.
      format: "curvjax": a dense Hugging Face directory where one exists, a checkpoint of ours, and the records; "peft":
        adapter_config.json and adapter_model.safetensors; "mlx", "compressed-tensors": a directory with codes, scales
        and offsets as they are, for mlx-lm, and for transformers and vLLM; "gguf": a GGUF file with them, or with
        layers of different sizes, which "nemotron-nas" can hold too, for mlx-lm.
      allocation: written beside it, with the budget realised; for "curvjax" only.
      serve: "vllm" refuses in compressed-tensors what vLLM does not run.
      gguf: for "gguf", the file that the original was read from, or the demonstration model that is one.
      round_to: for "nemotron-nas", of which number the widths of MLPs are to be multiples, such as 256.

    Returns:
      What was written where.

    Raises:
      FileExistsError: if the directory holds something.
      ValueError: if the model has no adapters for PEFT, their start changed the weights they stand on, or there are no
        codes that the other program can read; or an option does not belong to the format.

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
    if format != "curvjax" and allocation is not None:
        msg = f"an allocation is written beside the format 'curvjax' only; leave it out for {format!r}."
        raise ValueError(msg)
    settings = ExportSettings(serve=serve, gguf=str(gguf), round_to=round_to)
    if format not in ("curvjax", "peft"):
        export_codes(rebuilt.model, rebuilt.source, format, settings, directory)
        return Path(directory)
    require_options(format, settings)
    if format == "peft":
        require_stored_names(rebuilt.source)
        require_own_weights(rebuilt.model, rebuilt.source, source=rebuilt.method)
        save_peft(rebuilt.model, directory, base=rebuilt.source.name)
        return Path(directory)
    return save_forms(rebuilt, directory, allocation=allocation)


def with_validation_for(model: Loaded | Wrapped, text: Text, needs: Sequence[str]) -> tuple[Text, Text | None]:
    """The text, or where a score meets the gradient of a second one, two parts of it that share no document."""
    if not OF_TWO_TEXTS & set(needs):
        return text, None
    if isinstance(model, Wrapped):
        return split_sequences(model, text)
    origin = text.origin
    return with_validation(text, model, TextSettings(tokens=origin.length * origin.sequences, length=origin.length))
