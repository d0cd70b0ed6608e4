from dataclasses import replace

import numpy as np
import pytest

from curvjax.data import Document, documents_hash
from curvjax.records import TextOrigin
from curvjax.runs.measure import ScoreSettings
from curvjax.runs.text import TextSettings, changed, packed_text, read, with_validation
from tests.runs.tiny import ROWS, rows, texts, write_texts


def test_a_text_is_read_from_files_and_says_where_it_comes_from(loaded, tmp_path):
    source = write_texts(tmp_path / "texts", texts(8))
    found = read(source, loaded, ROWS)
    assert found.batch.tokens.shape == (2, 16)
    assert found.origin == TextOrigin(
        source=str(source),
        sha256=documents_hash(found.documents),
        tokens=int(found.batch.weights.sum()),
        sequences=2,
        length=16,
    )
    assert sorted(document.text for document in found.documents) == sorted(document.text for document in texts(8))
    longer = read(source, loaded, ROWS, tokens=48)
    assert longer.batch.tokens.shape == (3, 16)
    np.testing.assert_array_equal(longer.batch.tokens[:2], found.batch.tokens)
    assert read(source, loaded, ROWS, text_seed=1).origin.sha256 != found.origin.sha256


def test_rows_are_filled_past_short_documents(loaded):
    short = [Document(f"short/{number}", "w1 w2") for number in range(40)]
    found = packed_text([*short, *texts(2)], loaded, TextSettings(tokens=48, length=16), source="x")
    assert found.batch.tokens.shape == (3, 16)


def test_calibration_and_validation_share_no_document(loaded):
    whole = rows(loaded, texts(16))
    calibration, validation = with_validation(whole, loaded, ROWS)
    assert validation.documents == whole.documents[3::4]
    assert not set(calibration.documents) & set(validation.documents)
    assert len(calibration.documents) + len(validation.documents) == 16
    assert calibration.origin.sha256 != validation.origin.sha256
    with pytest.raises(ValueError, match="1 documents fill 1 rows of 16 tokens; 2 are needed"):
        with_validation(rows(loaded, texts(4)), loaded, ROWS)


def test_too_little_text_is_refused_with_both_numbers(loaded):
    with pytest.raises(ValueError, match="3 documents fill 3 rows of 16 tokens; 4 are needed"):
        packed_text(texts(3), loaded, TextSettings(tokens=64, length=16), source="x")


class Shifted:
    """A tokenizer of another model: every id is another."""

    def __init__(self, tokenizer, by):
        self.tokenizer, self.by = tokenizer, by

    def __getattr__(self, name):
        return getattr(self.tokenizer, name)

    def encode(self, text):
        return [number + self.by for number in self.tokenizer.encode(text)]


@pytest.mark.parametrize("by", [10, -10])
def test_tokens_that_the_model_lacks_are_refused_with_their_numbers(loaded, by):
    ids = np.concatenate([loaded.tokenizer.encode(text.text) for text in texts(2)]) + by
    with pytest.raises(ValueError, match=rf"ids run from {min(0, ids.min())} to {ids.max()}, the model's from 0 to 63"):
        rows(loaded._replace(tokenizer=Shifted(loaded.tokenizer, by)), texts(2))


@pytest.mark.parametrize("changes", [{"rope": None}, {}])
def test_documents_longer_than_the_model_was_made_for_are_refused(loaded, changes):
    short = loaded._replace(config=replace(loaded.config, max_positions=8, **changes))
    with pytest.raises(ValueError, match="a document of 14 tokens, but the model takes at most 8"):
        rows(short)


@pytest.mark.parametrize(
    ("wrong", "match"),
    [
        ({"tokens": 0}, "tokens must be positive, got 0"),
        ({"length": 0}, "length must be positive, got 0"),
        ({"tokens": 100, "length": 200}, "need tokens >= length, got 100 and 200 tokens"),
        ({"rows": 2}, "TextSettings has no rows; it has tokens, length, text_seed"),
    ],
)
def test_settings_out_of_range_are_refused(loaded, wrong, match):
    with pytest.raises(ValueError, match=match):
        changed(TextSettings, wrong)
    with pytest.raises(ValueError, match=match):
        read("nothing is read", loaded, **wrong)


def test_settings_are_changed_by_name_and_checked_again():
    assert changed(ScoreSettings, {"rtol": 0.1}) == ScoreSettings(rtol=0.1)
    with pytest.raises(ValueError, match="rtol must be positive"):
        changed(ScoreSettings, {"rtol": 0.0})
