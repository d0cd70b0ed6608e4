import numpy as np
import pytest

from curvjax.data import common_beginning, microbatches, share_prefixes
from curvjax.models.attention import Branches, visible_BTS


def drawn(seed):
    """Texts of which many begin alike, some begin others, and some are equal."""
    generator = np.random.default_rng(seed)
    examples = generator.integers(0, 9, 6).tolist()
    texts = [[*examples, *generator.integers(0, 3, generator.integers(0, 10)).tolist()] for _ in range(40)]
    return [*texts, [7], generator.integers(0, 3, 16).tolist()]


@pytest.mark.parametrize("seed", [1, 2, 3])
@pytest.mark.parametrize("length", [16, 400])
@pytest.mark.parametrize("window", [None, 3])
def test_a_token_sees_its_own_text_up_to_itself_and_nothing_else(seed, length, window):
    texts = drawn(seed)
    placed = share_prefixes(texts, length=length)
    rows = placed.rows
    visible = np.asarray(visible_BTS(Branches(rows.positions, rows.reach), window))
    for text, row, columns in zip(texts, placed.row, placed.columns, strict=True):
        assert rows.tokens[row, columns].tolist() == text
        assert rows.positions[row, columns].tolist() == list(range(len(text)))
        for place, column in enumerate(columns):
            seen = columns[: place + 1][-window:] if window else columns[: place + 1]
            assert np.flatnonzero(visible[row, column]).tolist() == seen.tolist()


@pytest.mark.parametrize("seed", [1, 2, 3])
def test_one_row_holds_every_beginning_once(seed):
    texts = drawn(seed)
    placed = share_prefixes(texts, length=400)
    beginnings = {tuple(text[:size]) for text in texts for size in range(1, len(text) + 1)}
    assert placed.rows.tokens.shape == (1, 400)
    assert placed.tokens == len(beginnings) == 1 + placed.columns[-1].max(initial=max(map(max, placed.columns)))


def test_the_order_of_the_texts_does_not_matter():
    texts = drawn(1)
    one, other = (share_prefixes(order, length=50) for order in (texts, texts[::-1]))
    for first, second in zip(one.rows, other.rows, strict=True):
        assert np.array_equal(first, second)


def test_texts_that_no_open_row_holds_begin_a_row():
    placed = share_prefixes([[1, 2, 3], [1, 2, 4], [5, 6, 7]], length=5)
    assert placed.rows.tokens.tolist() == [[1, 2, 3, 4, 0], [5, 6, 7, 0, 0]]
    assert placed.rows.positions.tolist() == [[0, 1, 2, 2, 0], [0, 1, 2, 0, 0]]
    assert placed.rows.reach.tolist() == [[3, 2, 0, 0, 0], [2, 1, 0, 0, 0]]
    assert placed.tokens == 7


def test_padding_sees_itself_alone():
    (part,) = microbatches(share_prefixes([[1, 2]], length=3).rows, 2)
    visible = np.asarray(visible_BTS(Branches(part.positions, part.reach), None))
    assert visible.tolist() == [[[1, 0, 0], [1, 1, 0], [0, 0, 1]], np.eye(3).tolist()]


def test_texts_that_cannot_lie_in_a_row_are_refused():
    with pytest.raises(ValueError, match="rows of 2 take texts of 1 to 2 tokens; got from 1 to 3"):
        share_prefixes([[1], [1, 2, 3]], length=2)
    with pytest.raises(ValueError, match="got from 0 to 1"):
        share_prefixes([[], [1]], length=2)
    with pytest.raises(ValueError, match="got none"):
        share_prefixes([], length=2)


def test_common_beginnings_end_where_texts_differ_or_end():
    assert [common_beginning([1, 2, 3], other) for other in ([1, 2, 4], [1, 2], [2], [], [1, 2, 3, 4])] == [
        2,
        2,
        0,
        0,
        3,
    ]
