"""`evaluate`: perplexity on texts and ranked-choice accuracy on tasks."""

import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TypeVar

from curvjax.artefacts import EVALUATION_SCHEMA, Record, machine, versions
from curvjax.data import Document, FewShot, Packed, Question, few_shot, packed, read_documents, read_task, sample
from curvjax.evaluation import Choice, Perplexity, encode_choices, perplexity, ranked_choice
from curvjax.models import BeginOfText, Decoder, Loaded, model_hash
from curvjax.runs.adapt import load_adapter
from curvjax.runs.open import open_model
from curvjax.runs.progress import Progress, labelled
from curvjax.runs.stopwatch import timed

Found = TypeVar("Found", Perplexity, Choice)


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


def text_perplexity(
    model: Decoder,
    loaded: Loaded,
    documents: list[Document],
    settings: EvaluateSettings,
    *,
    progress: Progress,
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
    found = packed(documents, loaded.tokenizer, length=settings.length)
    rows = len(found.batch.tokens)
    return found.first(min(rows, -(-settings.tokens // settings.length)) if settings.tokens else rows)


def task_accuracy(
    model: Decoder,
    loaded: Loaded,
    questions: list[Question],
    settings: EvaluateSettings,
    *,
    progress: Progress,
    label: str = "ranked choice",
) -> Choice:
    """Ranked-choice accuracy of `model` on `questions`."""
    return ranked_choice(
        model,
        loaded.tokenizer,
        questions,
        length=settings.question_length,
        rows_at_once=settings.rows,
        progress=labelled(progress, label),
    )


def perplexity_record(found: Perplexity) -> Record:
    """The fields of a `Perplexity` that a record keeps; rows are kept for paired comparisons."""
    return {
        "perplexity": found.perplexity,
        "nll": found.nll,
        "standard_error": found.standard_error,
        "interval": found.interval._asdict() | {"distribution": "Student's t, rows as clusters"},
        "tokens": found.tokens,
        "row_nll": found.row_nll,
        "row_tokens": found.row_tokens,
    }


def choice_record(found: Choice) -> Record:
    """The fields of a `Choice` that a record keeps; per-question results are kept for paired comparisons."""
    return {
        "accuracy": found.accuracy,
        "accuracy_standard_error": found.accuracy_standard_error,
        "accuracy_per_character": found.accuracy_per_character,
        "accuracy_per_character_standard_error": found.accuracy_per_character_standard_error,
        "gold_nll": found.gold_nll,
        "gold_nll_standard_error": found.gold_nll_standard_error,
        "correct": found.correct,
        "correct_per_character": found.correct_per_character,
        "question_gold_nll": found.question_gold_nll,
    }


def evaluate(
    model: str,
    texts: Sequence[str],
    tasks: Sequence[str],
    adapter: Path | None,
    settings: EvaluateSettings,
    *,
    shots: int = 0,
    begin_of_text: BeginOfText = "tokenizer",
    progress: Progress,
) -> Record:
    """The record of evaluation.json: every text and task on one model, with an adapter if given.

    Args:
      model: for `open_model`.
      texts: sources for perplexity.
      tasks: names for ranked choice.
      adapter: directory of an adapter to put on the model.
      settings: on how much.
      shots: solved examples before each question, none of them asked; see `few_shot`.
      begin_of_text: for `open_model`.
      progress: told of microbatches.

    Raises:
      ValueError: if there is nothing to evaluate on; if a source is unknown or too small; if a question with its
        examples is longer than the model was made for. Tasks are refused before anything is computed.
    """
    if not texts and not tasks:
        msg = "nothing to evaluate on: name at least one text or task."
        raise ValueError(msg)
    documents = {source: read_documents(source) for source in texts}
    asked = {name: _asked(read_task(name), settings, shots) for name in tasks}
    loaded = open_model(model, begin_of_text=begin_of_text)
    subject = loaded.model if adapter is None else load_adapter(loaded.model, adapter)
    for one in asked.values():
        encode_choices(subject, loaded.tokenizer, one.questions)

    def text_record(source: str) -> Record:
        chosen, label = sample(documents[source], len(documents[source]), seed=settings.seed), f"perplexity, {source}"
        rows, told = text_rows(chosen, loaded, settings), labelled(progress, label)
        found, speed = _measured(lambda: perplexity(subject, rows.batch, rows_at_once=settings.rows, progress=told))
        return perplexity_record(found) | {"cut": rows.cut._asdict()} | speed

    def task_record(name: str) -> Record:
        questions, examples = asked[name]
        found, speed = _measured(
            lambda: task_accuracy(subject, loaded, questions, settings, progress=progress, label=name)
        )
        return choice_record(found) | {"shots": shots, "examples": [one.id for one in examples]} | speed

    return {
        "schema": EVALUATION_SCHEMA,
        "model": {
            "name": loaded.name,
            "weights_sha256": model_hash(loaded.model),
            "adapter": None if adapter is None else str(adapter),
        }
        | loaded.tokenizer.around,
        "texts": {source: text_record(source) for source in documents},
        "tasks": {name: task_record(name) for name in asked},
        "settings": asdict(settings),
        "versions": versions(),
        "machine": machine(),
    }


def _asked(questions: list[Question], settings: EvaluateSettings, shots: int) -> FewShot:
    count = settings.questions if settings.questions < len(questions) else 0
    return few_shot(questions, count=count, shots=shots, seed=settings.seed)


def _measured(work: Callable[[], Found]) -> tuple[Found, Record]:
    """What `work` finds, and how fast it read: tokens without padding, on the clock and less compilation."""
    began = time.monotonic()
    found, running = timed(work)
    seconds = time.monotonic() - began
    return found, {
        "tokens_read": found.tokens_read,
        "seconds": seconds,
        "tokens_per_second": found.tokens_read / seconds,
        "tokens_per_second_without_compilation": found.tokens_read / running if running else None,
    }


def shown(record: Record) -> Record:
    """Without the per-row and per-question columns."""
    hidden = {"row_nll", "row_tokens", "correct", "correct_per_character", "question_gold_nll"}
    return {name: value for name, value in record.items() if name not in hidden}
