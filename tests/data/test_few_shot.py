import pytest

from curvjax.data import Question, few_shot, read_task, sample, with_examples
from curvjax.data.demonstration import request_records
from curvjax.data.splits import content_hash


def questions(count):
    """In groups of three; every fifth repeats a content of another group."""
    return [
        Question(f"q/{n}", (f"What is {n % (count - count // 5)}?",) * 2, (" this", " that"), n % 2, group=f"g{n // 3}")
        for n in range(count)
    ]


def keys(question):
    return {question.group, content_hash(question)}


@pytest.mark.parametrize("seed", [1, 2, 3])
def test_examples_share_nothing_with_questions_asked_nor_with_each_other(seed):
    items = questions(60)
    for count in (20, 0):
        asked, examples = few_shot(items, count=count, shots=4, seed=seed)
        bare = [next(item for item in items if item.id == question.id) for question in asked]
        assert len(asked) == count or not count
        assert not set().union(*map(keys, bare)) & set().union(*map(keys, examples))
        assert sum(map(len, map(keys, examples))) == len(set().union(*map(keys, examples)))
    left = [item for item in items if keys(item) & set().union(*map(keys, examples))]
    assert len(bare) + len(left) == len(items)


def test_questions_asked_are_those_without_examples_and_all_see_the_same_ones():
    items = questions(60)
    plain, shown = (few_shot(items, count=20, shots=shots, seed=1) for shots in (0, 3))
    assert plain == (sample(items, 20, seed=1), [])
    assert shown == few_shot(items[::-1], count=20, shots=3, seed=1)
    assert shown.questions == with_examples(plain.questions, shown.examples)
    assert few_shot(items, count=20, shots=3, seed=2).examples != shown.examples
    prompt = "".join(f"{one.contexts[0]}{one.continuations[one.label]}\n\n" for one in shown.examples)
    for bare, question in zip(plain.questions, shown.questions, strict=True):
        assert question == bare._replace(contexts=tuple(prompt + context for context in bare.contexts))


@pytest.mark.demo_model
@pytest.mark.parametrize(("task", "folder"), [("sciq", "sciq"), ("arc-easy", "arc_easy"), ("winogrande", "winogrande")])
def test_the_layout_is_that_of_the_packages_own_five_shot_requests(task, folder):
    record = request_records(f"{folder}/rc_5shot")[0]
    *parts, last = record["request"]["context"].split("\n\n")
    examples = [Question("", ("", part[:20]), ("", part[20:]), 1) for part in parts]
    question = next(q for q in read_task(task) if q.contexts[0].endswith(last))
    asked = with_examples([question._replace(contexts=(last,) * len(question.contexts))], examples)[0]
    assert len(parts) == 5
    assert (asked.contexts[0], asked.continuations[0]) == tuple(record["request"].values())


@pytest.mark.demo_model
def test_an_example_is_a_context_and_its_right_answer():
    solved = {q.contexts[q.label] + q.continuations[q.label] for q in read_task("commonsenseqa")}
    for record in request_records("csqa/rc_5shot")[:10]:
        examples = record["request"]["context"].split("\n\n")[:-1]
        assert all(part.startswith("Question: ") and "\nAnswer: " in part for part in examples)
    assert all(text.startswith("Question: ") and "\nAnswer: " in text and "\n\n" not in text for text in solved)


def test_too_few_questions_are_refused():
    with pytest.raises(ValueError, match=r"60 questions are too few to ask 58 and to show 3 .*: 0 are left. Ask fewer"):
        few_shot(questions(60), count=58, shots=3, seed=1)
    with pytest.raises(ValueError, match="9 questions are too few to ask the rest and to show 9"):
        few_shot(questions(9), count=0, shots=9, seed=1)
    with pytest.raises(ValueError, match="cannot sample 70 of 60"):
        few_shot(questions(60), count=70, shots=0, seed=1)
    with pytest.raises(ValueError, match="must not be negative: 1 to ask, -1 to show"):
        few_shot(questions(60), count=1, shots=-1, seed=1)
