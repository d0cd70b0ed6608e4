"""Tokenizers rebuilt from GGUF metadata, against llama.cpp and sentencepiece; and tokenizer.json."""

import json

import numpy as np
import pytest
import tokenizers

from curvjax.models import (
    Tokenizer,
    demonstration_files,
    fitted_tokenizer,
    load_tokenizer,
    read_gguf,
    save_tokenizer,
    tokenizer_from_gguf,
)
from curvjax.models.tokenizer import with_ends
from tests.models.families import GOLDEN
from tests.models.gguf_files import vocabulary

TOKENS = json.loads((GOLDEN / "tokens.json").read_text())
SENTENCEPIECE = {"space prefix": TOKENS["sentencepiece"][0], "no prefix": TOKENS["sentencepiece"][1]}


def byte_level(**changes):
    """A tiny GGUF vocabulary: `<pad> <s> </s> ! " # ... !!` with the one merge of two exclamation marks."""
    entries = vocabulary(64) | {f"tokenizer.ggml.{key}": value for key, value in changes.items()}
    arrays = {key: np.array(value) for key, value in entries.items() if key.endswith("type")}
    return {key: value for key, value in (entries | arrays).items() if value is not None}


def sentencepiece(golden, **changes):
    arrays = {key: np.array(golden[key]) for key in ("scores", "token_type")}
    entries = {"model": "llama", **golden, **arrays, "unknown_token_id": 0, "bos_token_id": 1, "eos_token_id": 2}
    return {f"tokenizer.ggml.{key}": value for key, value in (entries | changes).items()}


@pytest.fixture(scope="module")
def smollm2():
    (path,) = demonstration_files("smollm2-135m")
    return read_gguf(path).metadata


@pytest.mark.demo_model
@pytest.mark.parametrize("split", TOKENS["byte_level"])
def test_byte_level_ids_are_those_of_llama_cpp(smollm2, split):
    tokenizer = tokenizer_from_gguf(smollm2 | {"tokenizer.ggml.pre": split}, source="test")
    assert tokenizer.encode_batch(TOKENS["texts"]) == TOKENS["byte_level"][split]
    assert [tokenizer.encode(text) for text in TOKENS["texts"]] == TOKENS["byte_level"][split]
    assert [tokenizer.decode(ids) for ids in TOKENS["byte_level"][split]] == TOKENS["texts"]
    assert (tokenizer.vocab_size, tokenizer.bos_id, tokenizer.eos_id) == (49152, 1, 2)


@pytest.mark.parametrize("case", SENTENCEPIECE)
def test_sentencepiece_ids_are_those_of_sentencepiece(case):
    golden = SENTENCEPIECE[case]
    tokenizer = tokenizer_from_gguf(sentencepiece(golden), source="test")
    assert tokenizer.encode_batch(golden["texts"]) == golden["ids"]
    assert [tokenizer.decode(ids) for ids in golden["ids"]] == golden["decoded"]


def test_only_qwen_composes_characters_first():
    bytes_of_e_acute = {"tokens": [*byte_level()["tokenizer.ggml.tokens"][:-2], "\u00c3", "\u00a9"], "merges": []}
    ids = {
        split: tokenizer_from_gguf(byte_level(pre=split, **bytes_of_e_acute), source="test").encode("e\u0301")
        for split in ("qwen2", "gpt-2")
    }
    assert ids["qwen2"] == [62, 63]
    assert ids["gpt-2"] != ids["qwen2"]


@pytest.mark.parametrize(("split", "pieces"), [("smollm", 4), ("qwen2", 4), ("llama-bpe", 3), ("gpt-2", 2)])
def test_digits_are_kept_apart_as_each_family_does(split, pieces):
    entries = {"tokens": [*byte_level()["tokenizer.ggml.tokens"][:-2], "00", "0000"], "merges": ["0 0"]}
    assert len(tokenizer_from_gguf(byte_level(pre=split, **entries), source="test").encode("0000")) == pieces


def test_llama_3_keeps_words_that_its_merges_do_not_reach():
    entries = {"tokens": [*byte_level()["tokenizer.ggml.tokens"][:-1], "ABC"], "merges": []}
    assert tokenizer_from_gguf(byte_level(pre="llama-bpe", **entries), source="test").encode("ABC") == [63]
    assert len(tokenizer_from_gguf(byte_level(pre="gpt-2", **entries), source="test").encode("ABC")) == 3


def test_control_and_user_tokens_are_single_ids_wherever_they_stand():
    tokens = byte_level()["tokenizer.ggml.tokens"]
    types = [3, 3, 3, 4] + [1] * 60
    tokens[3] = "<tool>"
    tokenizer = tokenizer_from_gguf(byte_level(tokens=tokens, token_type=types, merges=[]), source="test")
    assert tokenizer.encode("A</s><tool>A") == [tokens.index("A"), 2, 3, tokens.index("A")]
    assert tokenizer.decode([2, 3]) == "</s><tool>"


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"model": "t5"}, r"tiny\.gguf: tokenizer\.ggml\.model 't5' is not supported; known: \['gpt2', 'llama'\]"),
        ({"model": None}, r"tokenizer\.ggml\.model None is not supported"),
        ({"pre": "falcon"}, r"tokenizer\.ggml\.pre 'falcon' is not supported; known: \['gpt-2', 'llama-bpe', 'qwen2'"),
        ({"merges": None}, r"tokenizer\.ggml\.merges must be an array of strings; found NoneType"),
        ({"tokens": np.arange(64)}, r"tokenizer\.ggml\.tokens must be an array of strings; found ndarray"),
        ({"token_type": np.ones(63)}, r"tokenizer\.ggml\.token_type has 63 entries for 64 tokens"),
        ({"merges": ["! !", "! Z!", "x"]}, r"2 of tokenizer\.ggml\.merges do not join two .* e\.g\. \('!', 'Z!'\)"),
        ({"eos_token_id": 64}, r"tokenizer\.ggml\.eos_token_id must be a token number below 64; found 64"),
        ({"add_bos_token": 1}, r"tokenizer\.ggml\.add_bos_token must be true or false; found 1"),
        ({"bos_token_id": "x"}, r"tokenizer\.ggml\.bos_token_id must be a token number below 64; found 'x'"),
    ],
)
def test_metadata_that_describe_no_known_tokenizer_are_refused(changes, message):
    with pytest.raises(ValueError, match=message):
        tokenizer_from_gguf(byte_level(**changes), source="tiny.gguf")


def test_sentencepiece_without_scores_is_refused():
    with pytest.raises(ValueError, match=r"tokenizer\.ggml\.scores must be an array of numbers; found NoneType"):
        tokenizer_from_gguf(sentencepiece(SENTENCEPIECE["no prefix"], scores=None), source="test")


class TestDirectory:
    @pytest.fixture
    def tokenizer(self):
        return tokenizer_from_gguf(byte_level(), source="test")

    def test_what_is_saved_is_read_back(self, tokenizer, tmp_path):
        save_tokenizer(tokenizer, tmp_path / "new")
        loaded = load_tokenizer(tmp_path / "new")
        assert loaded.encode('!!!"</s>#') == tokenizer.encode('!!!"</s>#') == [63, 3, 4, 2, 5]
        assert (loaded.vocab_size, loaded.bos_id, loaded.eos_id) == (64, 1, 2)

    def test_sentencepiece_survives_saving_too(self, tmp_path):
        golden = SENTENCEPIECE["space prefix"]
        save_tokenizer(tokenizer_from_gguf(sentencepiece(golden), source="test"), tmp_path)
        assert load_tokenizer(tmp_path).encode_batch(golden["texts"]) == golden["ids"]

    def test_truncation_padding_and_dropout_of_the_file_do_not_apply(self, tokenizer, tmp_path):
        backend = tokenizer.backend
        backend.enable_truncation(2)
        backend.enable_padding(length=7)
        backend.model.dropout = 0.9
        backend.save(str(tmp_path / "tokenizer.json"))
        loaded = load_tokenizer(tmp_path)
        assert loaded.encode("!#$%") == [3, 5, 6, 7]
        assert loaded.encode_batch(["!!!!"] * 20 + [""]) == [[63, 63]] * 20 + [[]]

    @pytest.mark.parametrize(
        ("template", "switches", "around"),
        [
            ("<s> $A", {}, ((1,), ())),
            ("<s> $A </s>", {}, ((1,), (2,))),
            ("<pad> <s> $A", {}, ((0, 1), ())),
            ("<s> $A", {"add_bos_token": False}, ((1,), ())),  # transformers 5 looks at the template alone
            (None, {}, ((), ())),
            (None, {"add_bos_token": True}, ((1,), ())),
            (None, {"add_bos_token": True, "add_eos_token": True}, ((1,), (2,))),
            (None, {"add_bos_token": False, "add_eos_token": True}, ((), (2,))),
        ],
    )
    def test_what_stands_around_a_text_is_the_template_or_else_the_switches(
        self, tokenizer, tmp_path, template, switches, around
    ):
        if template is not None:
            specials = [("<pad>", 0), ("<s>", 1), ("</s>", 2)]
            bytes_too = (
                tokenizers.processors.ByteLevel(),
                tokenizers.processors.TemplateProcessing(template, "$A $B", specials),
            )
            tokenizer.backend.post_processor = tokenizers.processors.Sequence(list(bytes_too))
        tokenizer.backend.save(str(tmp_path / "tokenizer.json"))
        config = {"bos_token": "<s>", "eos_token": {"content": "</s>"}} | switches
        (tmp_path / "tokenizer_config.json").write_text(json.dumps(config))
        loaded = load_tokenizer(tmp_path)
        assert (loaded.begin, loaded.end) == around
        assert loaded.encode("!") == [3]  # whoever reads a text puts them there
        save_tokenizer(loaded, tmp_path / "again")
        again = load_tokenizer(tmp_path / "again")
        assert (again.begin, again.end) == around

    def test_the_switch_decides_what_begins_a_text_and_is_not_saved(self, tokenizer, tmp_path):
        with_ends(tokenizer.backend, begin=1, end=None)
        kinds = {
            kind: fitted_tokenizer(tokenizer, vocab_size=64, source="model", begin_of_text=kind)
            for kind in ("tokenizer", "always", "never")
        }
        assert {kind: one.begin for kind, one in kinds.items()} == {"tokenizer": (1,), "always": (1,), "never": ()}
        assert kinds["always"].around == (("<s>",), ())
        save_tokenizer(kinds["never"], tmp_path)
        assert load_tokenizer(tmp_path).begin == (1,)

    def test_always_begins_with_the_first_token_where_none_is_asked_for(self, tokenizer):
        assert tokenizer.begin == ()
        assert fitted_tokenizer(tokenizer, vocab_size=64, source="model", begin_of_text="always").begin == (1,)
        tokenizer.bos_id = None
        with pytest.raises(ValueError, match=r"model: begin_of_text is 'always', but the tokenizer knows no first tok"):
            fitted_tokenizer(tokenizer, vocab_size=64, source="model", begin_of_text="always")
        with pytest.raises(ValueError, match=r"begin_of_text must be one of tokenizer, always, never; got 'yes'"):
            Tokenizer(tokenizer.backend, begin_of_text="yes")

    @pytest.mark.parametrize(
        "files",
        [
            {
                "tokenizer_config.json": {
                    "added_tokens_decoder": {"65": {"content": "<two>"}, "64": {"content": "<one>", "special": True}},
                    "eos_token": "<two>",
                }
            },
            {"added_tokens.json": {"<one>": 64, "<two>": 65}, "special_tokens_map.json": {"eos_token": "<two>"}},
            {
                "special_tokens_map.json": {
                    "eos_token": {"content": "<two>"},
                    "additional_special_tokens": [],
                    "bos_token": "<one>",
                }
            },
            {"tokenizer_config.json": {"eos_token": "<one>", "extra_special_tokens": ["<two>"]}},
            {"tokenizer_config.json": {"eos_token": "<one>", "image_token": "<two>"}},
        ],
    )
    def test_tokens_that_only_other_files_name_are_single_ids(self, tokenizer, tmp_path, files):
        tokenizer.backend.save(str(tmp_path / "tokenizer.json"))
        for name, content in files.items():
            (tmp_path / name).write_text(json.dumps(content))
        loaded = load_tokenizer(tmp_path)
        assert loaded.encode("!<two>!<one>") == [3, 65, 3, 64]
        assert loaded.eos_id in {64, 65}
        assert loaded.vocab_size == 66

    @pytest.mark.parametrize(
        ("files", "ends"),
        [
            ({}, (None, None)),
            ({"tokenizer_config.json": {"bos_token": "<s>", "eos_token": {"content": "</s>"}}}, (1, 2)),
            ({"generation_config.json": {"bos_token_id": 1, "eos_token_id": [2, 0]}}, (1, 2)),
            ({"config.json": {"bos_token_id": 0, "eos_token_id": 1}}, (0, 1)),
            ({"config.json": {"bos_token_id": 0, "eos_token_id": []}}, (0, None)),
            (
                {"generation_config.json": {"eos_token_id": 0}, "tokenizer_config.json": {"eos_token": "</s>"}},
                (None, 2),
            ),
        ],
    )
    def test_ends_come_from_the_first_file_that_names_them(self, tokenizer, tmp_path, files, ends):
        tokenizer.backend.save(str(tmp_path / "tokenizer.json"))
        for name, content in files.items():
            (tmp_path / name).write_text(json.dumps(content))
        loaded = load_tokenizer(tmp_path)
        assert (loaded.bos_id, loaded.eos_id) == ends

    def test_a_missing_file_is_named(self, tmp_path):
        with pytest.raises(FileNotFoundError, match=r"tokenizer\.json: no such file\. Only the `tokenizers` format"):
            load_tokenizer(tmp_path)

    def test_files_that_are_not_what_they_seem_are_named(self, tokenizer, tmp_path):
        (tmp_path / "tokenizer.json").write_text("{}")
        with pytest.raises(ValueError, match=r"tokenizer\.json: not a tokenizer\.json: "):
            load_tokenizer(tmp_path)
        tokenizer.backend.save(str(tmp_path / "tokenizer.json"))
        for content, message in {
            "{": r"tokenizer_config\.json: not JSON: ",
            "[]": r"tokenizer_config\.json: expected a JSON object, found list",
            '{"added_tokens_decoder": {"x": "<a>"}}': r"tokenizer_config\.json, or .* describe no tokens: invalid lit",
            '{"added_tokens_decoder": ["<a>"]}': r"tokenizer_config\.json, or .* describe no tokens",
            '{"eos_token": {"id": 3}}': r"tokenizer_config\.json, or .* describe no tokens",
            '{"eos_token": ["</s>"]}': r"eos_token is \['</s>'\]; a tokenizer's files name it by its text",
            '{"bos_token": 1}': "bos_token is 1; a tokenizer's files name it by its text",
        }.items():
            (tmp_path / "tokenizer_config.json").write_text(content)
            with pytest.raises(ValueError, match=message):
                load_tokenizer(tmp_path)
        (tmp_path / "tokenizer_config.json").unlink()
        (tmp_path / "added_tokens.json").write_text('{"<a>": [64]}')
        with pytest.raises(ValueError, match=r"added_tokens\.json: tokens need whole numbers; got .*<a>"):
            load_tokenizer(tmp_path)

    def test_a_vocabulary_larger_than_the_model_is_refused_with_both_numbers(self, tokenizer):
        assert fitted_tokenizer(tokenizer, vocab_size=64, source="model").encode("!") == [3]
        message = r"model: the tokenizer gives ids up to 63, but the model's vocabulary has 63 rows \(ids up to 62\)"
        with pytest.raises(ValueError, match=message):
            fitted_tokenizer(tokenizer, vocab_size=63, source="model")

    def test_an_added_token_beyond_the_model_is_refused_where_a_text_has_it(self, tokenizer):
        tokenizer.backend.add_tokens([tokenizers.AddedToken("<image>", special=True)])
        fitted = fitted_tokenizer(tokenizer, vocab_size=64, source="model")
        assert (fitted.encode("!!"), fitted.vocab_size) == ([63], 65)
        for encode in (fitted.encode, lambda text: fitted.encode_batch(["!", text])):
            with pytest.raises(ValueError, match=r"'<image>' has id 64, but the model's embedding ends at id 63"):
                encode("!<image>!")
        with_ends(tokenizer.backend, begin=64, end=None)
        with pytest.raises(ValueError, match=r"model: token '<image>' has id 64, but the model's embedding ends at"):
            fitted_tokenizer(tokenizer, vocab_size=64, source="model")

    def test_half_a_surrogate_pair_is_named_with_its_place(self, tokenizer):
        for encode in (tokenizer.encode, lambda text: tokenizer.encode_batch(["!", text])):
            with pytest.raises(ValueError, match=r"\\ud83d at character 2 is half of a surrogate pair"):
                encode("!!\ud83d")


@pytest.mark.parametrize(
    ("changes", "around"),
    [
        ({}, ((), ())),
        ({"add_bos_token": True}, ((1,), ())),
        ({"add_bos_token": True, "add_eos_token": True}, ((1,), (2,))),
        ({"pre": "llama-bpe"}, ((1,), ())),  # what llama.cpp takes for said
        ({"pre": "llama-bpe", "add_bos_token": False}, ((), ())),
        ({"add_bos_token": True, "bos_token_id": None}, ((), ())),
    ],
)
def test_gguf_says_what_stands_around_a_text(changes, around):
    tokenizer = tokenizer_from_gguf(byte_level(**changes), source="test")
    assert (tokenizer.begin, tokenizer.end) == around


def test_sentencepiece_begins_texts_unless_the_file_says_no():
    golden = SENTENCEPIECE["space prefix"]
    for changes, begin in (({}, (1,)), ({"add_bos_token": False}, ())):
        entries = sentencepiece(golden) | {f"tokenizer.ggml.{key}": value for key, value in changes.items()}
        assert tokenizer_from_gguf(entries, source="test").begin == begin
