import itertools
from collections import Counter

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from curvjax.data import Batch, Document, Piece, Truncation, arrange, microbatches, pack, packed_rows, take, windows
from tests.data.encoders import Characters

texts = st.lists(st.text(alphabet="abcdefg", max_size=20), min_size=1, max_size=12)


def segments(batch):
    """Each segment of each row as its tokens, targets, weights and positions."""
    arrays = [np.asarray(leaf) for leaf in batch]
    for row, numbers in enumerate(arrays[4]):
        for number in range(1, numbers.max() + 1):
            inside = numbers == number
            assert np.ptp(np.flatnonzero(inside)) + 1 == inside.sum()  # in one stretch
            yield tuple(leaf[row, inside] for leaf in arrays[:4])


@settings(deadline=None)
@given(texts, st.integers(3, 9), st.booleans(), st.sampled_from([(), (7,), (7, 8)]))
def test_packing_counts_every_prediction_once_within_its_document(strings, length, end, begin):
    documents, tokenizer = [Document(str(i), text) for i, text in enumerate(strings)], Characters(begin=begin)
    wanted = Counter()
    for text in strings:
        whole = [*begin[-1:], *map(ord, text), *([0] if end else [])]
        wanted.update(itertools.pairwise(whole))
    if not wanted:
        with pytest.raises(ValueError, match="nothing to predict"):
            pack(documents, tokenizer, length=length, end=end)
        return
    batch = Batch(*map(np.asarray, pack(documents, tokenizer, length=length, end=end)))
    found, pieces = Counter(), []
    for tokens, targets, weights, positions in segments(batch):
        assert positions.tolist() == list(range(len(tokens)))
        assert tokens[1:].tolist() == targets[:-1].tolist()
        assert tuple(tokens[: len(begin)]) == begin
        assert (weights[len(begin) :] == 1).all()
        assert not weights[: max(len(begin) - 1, 0)].any()
        counted = weights == 1
        found.update(zip(tokens[counted].tolist(), targets[counted].tolist(), strict=True))
        pieces.append("".join(map(chr, [*tokens[len(begin) :], targets[-1]])).rstrip("\0"))
    assert found == wanted
    assert all(any(piece in text for text in strings) for piece in pieces)
    assert not batch.weights[batch.segments == 0].any()
    assert batch.tokens.shape[1] == length


@settings(deadline=None)
@given(texts, texts, st.integers(2, 9), st.sampled_from([(), (7,)]))
@pytest.mark.filterwarnings("ignore:.*rows? of . tokens")
def test_only_completions_count(prompts, strings, length, begin):
    pairs = [(p, t) for p, t in zip(prompts, strings, strict=False) if p and t]
    if not pairs:
        return
    documents = [Document(str(i), text.upper(), prompt=prompt) for i, (prompt, text) in enumerate(pairs)]
    batch = pack(documents, Characters(begin=begin), length=length)
    counted = np.asarray(batch.targets)[np.asarray(batch.weights) == 1]
    assert Counter(map(chr, counted)) == Counter("".join(text.upper() for _, text in pairs))
    assert all(weights.any() for _, _, weights, _ in segments(batch))


def test_what_begins_a_text_is_read_and_never_predicted():
    batch = pack([Document("1", "ab"), Document("2", "d", prompt="c")], Characters(begin=(7,)), length=5)
    assert batch.tokens.tolist() == [[7, 97, 7, 99, 0]]
    assert batch.targets.tolist() == [[97, 98, 99, 100, 0]]
    assert batch.weights.tolist() == [[1, 1, 0, 1, 0]]
    assert batch.segments.tolist() == [[1, 1, 2, 2, 0]]


def test_each_piece_of_a_long_text_begins_anew():
    batch = pack([Document("1", "abcdefg")], Characters(begin=(7,)), length=4)
    assert batch.tokens.tolist() == [[7, *map(ord, "abc")], [7, *map(ord, "def")]]
    assert batch.targets.tolist() == [[*map(ord, "abcd")], [*map(ord, "defg")]]
    assert batch.weights.tolist() == [[1, 1, 1, 1], [0, 1, 1, 1]]  # d is counted in the first
    assert batch.positions.tolist() == [[0, 1, 2, 3]] * 2


def test_a_text_that_brings_its_beginning_gets_no_second():
    own, given = (pack([Document("1", text)], Characters(begin=(7,)), length=4) for text in ("\x07ab", "ab"))
    assert own.tokens.tolist() == given.tokens.tolist() == [[7, 97, 0, 0]]
    assert own.weights.tolist() == given.weights.tolist()


def test_what_ends_a_text_is_predicted_where_the_tokenizer_asks():
    asked = pack([Document("1", "ab", prompt="c")], Characters(end=(5,)), length=4)
    assert asked.targets.tolist() == [[97, 98, 5, 0]]
    assert asked.weights.tolist() == [[1, 1, 1, 0]]
    told = pack([Document("1", "ab", prompt="c")], Characters(), length=4, end=True)
    assert told.targets.tolist() == [[97, 98, 0, 0]]


class TestLongPrompts:
    """Rows of 8 tokens, of which a prompt of 20 leaves the last beside the completion."""

    PROMPT = "abcdefghijklmnopqrst"

    def rows(self, completion, *, begin=(), length=8):
        with pytest.warns(UserWarning, match="1 of 1 prompts did not fit into rows of"):
            return packed_rows([Document("1", completion, prompt=self.PROMPT)], Characters(begin=begin), length=length)

    def test_the_last_tokens_stay_in_one_row_with_the_completion(self):
        found = self.rows("XYZ")
        assert "".join(map(chr, found.batch.tokens[0])) == "opqrstXY"
        assert found.batch.weights.tolist() == [[0, 0, 0, 0, 0, 1, 1, 1]]
        assert found.cut == Truncation(prompts=1, tokens=14, completions=0)

    def test_what_begins_the_text_stays_too(self):
        found = self.rows("XYZ", begin=(7,))
        assert "".join(map(chr, found.batch.tokens[0])) == "\x07pqrstXY"
        assert found.batch.weights.sum() == 3
        assert found.cut.tokens == 15

    @pytest.mark.parametrize("begin", [(), (7,)])
    def test_a_completion_longer_than_a_row_is_predicted_whole_in_pieces(self, begin):
        completion = "ABCDEFGHIJK"
        found = self.rows(completion, begin=begin)
        kept = self.PROMPT[-((8 - len(begin)) // 2) :]
        assert "".join(map(chr, found.batch.tokens[0])).startswith("\x07" * len(begin) + kept + "A")
        counted = np.asarray(found.batch.targets)[np.asarray(found.batch.weights) == 1]
        assert "".join(map(chr, counted)) == completion
        assert found.cut == Truncation(1, len(self.PROMPT) - len(kept), 1)

    def test_cuts_are_counted_for_the_rows_that_are_taken(self):
        documents = [Document("1", "X", prompt=self.PROMPT), Document("2", "Y", prompt="abcdefgh")]
        with pytest.warns(UserWarning, match="1 of 2 prompts did not fit"):
            found = packed_rows(documents, Characters(), length=8)
        assert found.cut == found.first(1).cut == Truncation(1, 12, 0)
        assert packed_rows(documents[1:], Characters(), length=8).cut == Truncation(0, 0, 0)


def test_a_text_that_cannot_be_encoded_is_named():
    class Strict(Characters):
        def encode(self, text):
            msg = "no such token."
            raise ValueError(msg)

    with pytest.raises(ValueError, match=r"document 'a\.jsonl:3': no such token"):
        pack([Document("a.jsonl:3", "abc")], Strict(), length=4)


def test_rows_are_filled_by_best_fit():
    pieces = [Piece(*np.ones((3, size), np.int32)) for size in (5, 3, 4, 2, 2, 1)]
    placed = arrange(pieces, length=7)
    assert placed.row.tolist() == [0, 1, 1, 0, 2, 2]
    assert placed.column.tolist() == [0, 0, 3, 5, 0, 2]
    assert placed.batch.segments.tolist() == [[1] * 5 + [2] * 2, [1] * 3 + [2] * 4, [1] * 2 + [2] + [0] * 4]


def test_batches_have_32_bits_whatever_the_default():
    batch = pack([Document("1", "abc")], Characters(), length=4)
    assert [leaf.dtype for leaf in batch] == [jnp.int32, jnp.int32, jnp.float32, jnp.int32, jnp.int32]


def test_windows_run_over_the_borders_of_documents():
    batch = windows([Document("1", "abc"), Document("2", "def")], Characters(), length=4)
    assert "".join(map(chr, batch.tokens.ravel())) == "abc\n\ndef"
    assert batch.targets[:, :3].tolist() == batch.tokens[:, 1:].tolist()
    assert batch.weights.tolist() == [[1, 1, 1, 0]] * 2
    assert batch.positions.tolist() == [[0, 1, 2, 3]] * 2
    assert windows([Document("1", "abcdefghi")], Characters(), length=4, max_tokens=7).tokens.shape == (1, 4)


def test_windows_begin_as_texts_do_and_predict_no_token_without_context():
    batch = windows([Document("1", "abcdefgh")], Characters(begin=(7,)), length=4)
    assert batch.tokens.tolist() == [[7, *map(ord, "abc")], [7, *map(ord, "def")]]
    assert batch.weights.tolist() == [[0, 1, 1, 0]] * 2


def test_take_gives_rows_in_the_order_asked():
    batch = pack([Document("1", "abcdefg")], Characters(), length=2)
    assert take(batch, [2, 0]).tokens.tolist() == [list(map(ord, "ef")), list(map(ord, "ab"))]


@pytest.mark.parametrize("size", [1, 2, 3, 5])
def test_microbatches_are_the_batch_and_padding(size):
    batch = pack([Document("1", "abcdefg")], Characters(), length=2)
    parts = list(microbatches(batch, size))
    assert {part.tokens.shape for part in parts} == {(size, 2)}
    joined = jax.tree.map(lambda *leaves: jnp.concatenate(leaves), *parts)
    assert jax.tree.all(jax.tree.map(lambda whole, all_: (whole[:3] == all_).all(), joined, batch))
    assert not any(leaf[3:].any() for leaf in joined)


def test_end_needs_a_tokenizer_that_has_one():
    tokenizer = Characters()
    tokenizer.eos_id = None
    with pytest.raises(ValueError, match="needs a tokenizer with an eos_id"):
        pack([Document("1", "abc")], tokenizer, length=4, end=True)


def test_settings_out_of_range_say_so():
    batch = pack([Document("1", "abcdefg")], Characters(), length=2)
    with pytest.raises(ValueError, match="no row 3: the batch has rows 0 to 2"):
        take(batch, [0, 3])
    with pytest.raises(ValueError, match="at least one row; got size=0"):
        list(microbatches(batch, 0))
    with pytest.raises(ValueError, match=r"one window of 9 tokens .* the texts have 3"):
        windows([Document("1", "abc")], Characters(), length=9)
    with pytest.raises(ValueError, match=r"one window of 1 tokens \(at least 2\)"):
        windows([Document("1", "abc")], Characters(), length=1)
    with pytest.raises(ValueError, match="rows of at least one token; got length=0"):
        pack([Document("1", "abc")], Characters(), length=0)
    with pytest.raises(ValueError, match="at least one token beside the 2 that begin a text; got length=2"):
        pack([Document("1", "abc")], Characters(begin=(7, 8)), length=2)
    with pytest.raises(ValueError, match="a piece of 3 tokens does not fit into rows of 2"):
        arrange([Piece(*np.ones((3, 3), np.int32))], length=2)
