import pytest

from curvjax.data import encode_pair
from curvjax.data.tokens import require_unicode
from tests.data.encoders import Characters, Words


@pytest.mark.parametrize(
    ("context", "continuation"), [("the capital is", " Paris now"), ("the capital is ", "Paris now")]
)
def test_blank_at_the_border_belongs_to_the_continuation(context, continuation):
    words = Words()
    ids, given = encode_pair(words, context, continuation)
    assert ids == words.encode("the capital is Paris now")
    assert given == 3


def test_without_context_nothing_is_given():
    assert encode_pair(Characters(), "", "ab") == ([97, 98], 0)


def test_a_continuation_that_merges_into_its_context_keeps_one_token():
    class Greedy(Characters):
        def encode(self, text):
            return [1, 2] if text in {"ab", "abc"} else super().encode(text)

    assert encode_pair(Greedy(), "ab", "c") == ([1, 2], 1)


def test_what_begins_a_text_is_given_and_stands_there_once():
    tokenizer = Characters(begin=(7, 8))
    assert encode_pair(tokenizer, "", "ab") == ([7, 8, 97, 98], 2)
    assert encode_pair(tokenizer, "a", "b") == ([7, 8, 97, 98], 3)
    assert encode_pair(tokenizer, "", "\x07\x08ab") == ([7, 8, 97, 98], 2)
    assert encode_pair(tokenizer, "\x07\x08a", "b") == ([7, 8, 97, 98], 3)
    assert encode_pair(tokenizer, "", "") == ([7, 8], 1)


@pytest.mark.parametrize(("text", "half", "place"), [("ab\ud83d", r"\\ud83d", 2), ("\udc00", r"\\udc00", 0)])
def test_half_a_surrogate_pair_is_shown_with_its_place(text, half, place):
    with pytest.raises(ValueError, match=rf"{half} at character {place} is half of a surrogate pair"):
        require_unicode(text)
    require_unicode("a whole one, \N{SLIGHTLY SMILING FACE}, and U+FFFD \ufffd")


def test_empty_pair_has_no_tokens():
    assert encode_pair(Characters(), "", "") == ([], 0)
