"""`evaluate`: perplexity on texts and ranked-choice accuracy on tasks."""

import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TypeVar

import numpy as np
from jax.typing import ArrayLike

from curvjax.data import Document, FewShot, Packed, Question, few_shot, packed_rows, read_documents, read_task, sample
from curvjax.evaluation import Perplexity, RankedChoice, encode_choices, perplexity, ranked_choice
from curvjax.models import Decoder, Loaded
from curvjax.records import Origin, Outcome, Speed, TaskOutcome, TextOutcome
from curvjax.runs.adapt import adapted_model
from curvjax.runs.progress import Progress, labelled, silent
from curvjax.runs.stopwatch import timed

Found = TypeVar("Found", Perplexity, RankedChoice)


@dataclass(frozen=True, kw_only=True)
class EvaluateSettings:
    """On how much, and in what portions."""

    tokens: int = 4096
    """Most tokens of a text; 0: all."""
    length: int = 256
    """Tokens in a row of text."""
    questions: int = 200
    """Most questions of a task; 0: all."""
    question_length: int = 128
    """Tokens in a row of packed questions; more where all begin with the same examples."""
    rows: int = 8
    """Rows in memory at a time."""
    seed: int = 0
    """Of the choice of documents, questions and examples."""

    def __post_init__(self) -> None:
        """Refuse numbers that nothing can be read by."""
        least = {"tokens": 0, "length": 2, "questions": 0, "question_length": 2, "rows": 1}
        wrong = [
            f"{name} from {low} on, got {got}" for name, low in least.items() if (got := getattr(self, name)) < low
        ]
        if wrong:
            msg = f"settings out of range: {'; '.join(wrong)}."
            raise ValueError(msg)


def text_perplexity(
    model: Decoder,
    loaded: Loaded,
    documents: list[Document],
    settings: EvaluateSettings,
    *,
    progress: Progress = silent,
    label: str = "perplexity",
) -> Perplexity:
    """Perplexity of `model` on `documents`, whole documents packed into rows.

    Raises:
      ValueError: if the documents are too short to fill a row.
    """
    batch = text_rows(documents, loaded, settings).batch
    return perplexity(model, batch, rows_at_once=settings.rows, progress=labelled(progress, label))


def text_rows(documents: list[Document], loaded: Loaded, settings: EvaluateSettings) -> Packed:
    """The rows that perplexity is measured on: whole documents, packed.

    Raises:
      ValueError: if the documents have nothing to predict.
    """
    found = packed_rows(documents, loaded.tokenizer, length=settings.length)
    rows = len(found.batch.tokens)
    return found.first(min(rows, -(-settings.tokens // settings.length)) if settings.tokens else rows)


def task_accuracy(
    model: Decoder,
    loaded: Loaded,
    questions: list[Question],
    settings: EvaluateSettings,
    *,
    progress: Progress = silent,
    label: str = "ranked choice",
) -> RankedChoice:
    """Ranked-choice accuracy of `model` on `questions`."""
    return ranked_choice(
        model,
        loaded.tokenizer,
        questions,
        length=settings.question_length,
        rows_at_once=settings.rows,
        progress=labelled(progress, label),
    )


def text_outcome(
    found: Perplexity, *, cut: tuple[int, int, int] = (0, 0, 0), speed: Speed | None = None
) -> TextOutcome:
    """A `Perplexity` for records."""
    low, high, _, degrees = found.interval
    return TextOutcome(
        tokens=found.tokens,
        nll=found.nll,
        standard_error=known(found.standard_error),
        perplexity=found.perplexity,
        interval=(known(low), known(high)),
        degrees=degrees,
        cut=cut,
        row_nll=tuple(found.row_nll.tolist()),
        row_tokens=tuple(found.row_tokens.tolist()),
        speed=speed,
    )


def task_outcome(
    found: RankedChoice, *, shots: int = 0, examples: tuple[str, ...] = (), speed: Speed | None = None
) -> TaskOutcome:
    """A `RankedChoice` for records."""
    return TaskOutcome(
        questions=found.correct.size,
        accuracy=found.accuracy,
        accuracy_standard_error=known(found.accuracy_standard_error),
        accuracy_per_character=found.accuracy_per_character,
        accuracy_per_character_standard_error=known(found.accuracy_per_character_standard_error),
        gold_nll=found.gold_nll,
        gold_nll_standard_error=known(found.gold_nll_standard_error),
        shots=shots,
        examples=examples,
        correct=tuple(found.correct.tolist()),
        correct_per_character=tuple(found.correct_per_character.tolist()),
        question_gold_nll=tuple(found.question_gold_nll.tolist()),
        speed=speed,
    )


def known(value: ArrayLike) -> float | None:
    """None for a number that is not finite."""
    number = float(np.asarray(value))
    return number if np.isfinite(number) else None


def evaluate(
    loaded: Loaded,
    texts: Sequence[str] = (),
    tasks: Sequence[str] = (),
    settings: EvaluateSettings | None = None,
    *,
    adapter: str | Path | None = None,
    shots: int = 0,
    progress: Progress = silent,
) -> Outcome:
    """What a model does on texts and tasks.

    Args:
      loaded: the model and its tokenizer.
      texts: sources for perplexity.
      tasks: names for ranked choice.
      settings: on how much.
      adapter: directory of an adapter to put on the model.
      shots: solved examples before each question, none of them asked; see `few_shot`.
      progress: told of microbatches.

    Returns:
      Perplexities and accuracies by name.

    Raises:
      ValueError: if there is nothing to evaluate on; if a source is unknown or too small; if a question with its
        examples is longer than the model was made for. Tasks are refused before anything is computed.
    """
    settings = settings or EvaluateSettings()
    documents, asked = read_all(texts, tasks, settings, shots)
    subject = adapted_model(loaded, adapter)
    for one in asked.values():
        encode_choices(subject, loaded.tokenizer, one.questions)

    def on_text(source: str) -> TextOutcome:
        chosen, label = sample(documents[source], len(documents[source]), seed=settings.seed), f"perplexity, {source}"
        rows, told = text_rows(chosen, loaded, settings), labelled(progress, label)
        found, speed = _measured(lambda: perplexity(subject, rows.batch, rows_at_once=settings.rows, progress=told))
        return text_outcome(found, cut=(rows.cut.prompts, rows.cut.tokens, rows.cut.completions), speed=speed)

    def on_task(name: str) -> TaskOutcome:
        questions, examples = asked[name]
        found, speed = _measured(
            lambda: task_accuracy(subject, loaded, questions, settings, progress=progress, label=name)
        )
        return task_outcome(found, shots=shots, examples=tuple(one.id for one in examples), speed=speed)

    return Outcome(
        origin=Origin(model=loaded.origin, settings=asdict(settings)),
        adapter=None if adapter is None else str(adapter),
        begin_of_text=loaded.tokenizer.around.begin_of_text,
        texts={source: on_text(source) for source in documents},
        tasks={name: on_task(name) for name in asked},
    )


def read_all(
    texts: Sequence[str], tasks: Sequence[str], settings: EvaluateSettings, shots: int = 0
) -> tuple[dict[str, list[Document]], dict[str, FewShot]]:
    """Documents and questions by name; to be asked before a model is read.

    Raises:
      ValueError: if there is nothing to evaluate on, or a source is unknown or too small.
    """
    if not texts and not tasks:
        msg = "nothing to evaluate on: name at least one text or task."
        raise ValueError(msg)
    documents = {source: read_documents(source) for source in texts}
    if shots < 0:
        msg = f"shots must be at least 0; got {shots}."
        raise ValueError(msg)
    return documents, {name: _asked(read_task(name), settings, shots) for name in tasks}


def _asked(questions: list[Question], settings: EvaluateSettings, shots: int) -> FewShot:
    count = settings.questions if settings.questions < len(questions) else 0
    return few_shot(questions, count=count, shots=shots, seed=settings.seed)


def _measured(work: Callable[[], Found]) -> tuple[Found, Speed]:
    """What `work` finds, and how fast it read: tokens without padding, on the clock and less compilation."""
    began = time.monotonic()
    found, running = timed(work)
    seconds = time.monotonic() - began
    return found, Speed(
        tokens_read=found.tokens_read,
        seconds=seconds,
        tokens_per_second=found.tokens_read / seconds,
        without_compilation=found.tokens_read / running if running else None,
    )
