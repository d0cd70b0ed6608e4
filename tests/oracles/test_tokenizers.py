"""Token ids of every kind of tokenizer, and what stands around a text, against transformers."""

import itertools
import json

import pytest
import tokenizers
from tokenizers import (
    AddedToken,
    Regex,
    decoders,
    models,
    normalizers,
    pre_tokenizers,
    processors,
    trainers,
)
from transformers import AutoTokenizer

from curvjax.models import load_tokenizer, save_tokenizer

pytestmark = pytest.mark.oracle

TEXTS = [
    "The cat couldn't say 12,345.67; I'LL say it's NOT so!",
    "  leading, trailing  and\n\n\nempty   lines \t\r\n \n end ",
    "na\u00efve caf\u00e9, nai\u0308ve cafe\u0301, \u212b \ufb01 \u00bd",
    "\u0645\u0631\u062d\u0628\u0627 \u202babc\u202c \u05e9\u05dc\u05d5\u05dd",
    "\U0001f469\u200d\U0001f469\u200d\U0001f467 \U0001f1eb\U0001f1f7 \u2764\ufe0f \ufffd",
    "a\x00b\x07\x1b[0m\x7f\u0085\u2028\u200b\ufeff",
    "<s>the</s> cat <tool>\u2581the <tool> the<|two|>the",
    "the " * 200,
    " ",
    "",
]
CORPUS = [*TEXTS[:3], "the cat that sat on the other mat saw the cat " * 3, "sit sat set, cat mat chat"]
SPECIALS = ["<unk>", "<s>", "</s>", "<pad>"]


def _byte_level():
    backend = tokenizers.Tokenizer(models.BPE())
    backend.normalizer = normalizers.NFC()
    words = pre_tokenizers.Split(Regex(r" ?\p{L}+| ?\p{N}{1,3}| ?[^\s\p{L}\p{N}]+|\s+"), "isolated")
    backend.pre_tokenizer = pre_tokenizers.Sequence([words, pre_tokenizers.ByteLevel(False, use_regex=False)])
    backend.decoder = decoders.ByteLevel()
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    return backend, trainers.BpeTrainer(
        vocab_size=400, special_tokens=SPECIALS, initial_alphabet=alphabet, show_progress=False
    )


def _sentencepiece():
    """Like Llama 2's and, without the space before, Gemma's."""
    backend = tokenizers.Tokenizer(models.BPE(unk_token="<unk>", fuse_unk=True, byte_fallback=True))
    backend.normalizer = normalizers.Sequence([normalizers.Prepend("\u2581"), normalizers.Replace(" ", "\u2581")])
    specials = [*SPECIALS, *(f"<0x{byte:02X}>" for byte in range(256))]
    return backend, trainers.BpeTrainer(vocab_size=400, special_tokens=specials, show_progress=False)


def _unigram():
    backend = tokenizers.Tokenizer(models.Unigram())
    backend.normalizer = normalizers.Sequence([normalizers.NFKC(), normalizers.Replace(Regex(" {2,}"), " ")])
    backend.pre_tokenizer = pre_tokenizers.Metaspace()
    return backend, trainers.UnigramTrainer(
        vocab_size=90, special_tokens=SPECIALS, unk_token="<unk>", show_progress=False
    )


def _word_piece():
    backend = tokenizers.Tokenizer(models.WordPiece(unk_token="<unk>"))
    backend.normalizer, backend.pre_tokenizer = normalizers.BertNormalizer(), pre_tokenizers.BertPreTokenizer()
    return backend, trainers.WordPieceTrainer(vocab_size=150, special_tokens=SPECIALS, show_progress=False)


def _word_level():
    backend = tokenizers.Tokenizer(models.WordLevel(unk_token="<unk>"))
    backend.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    return backend, trainers.WordLevelTrainer(vocab_size=60, special_tokens=SPECIALS, show_progress=False)


KINDS = {
    "byte-level BPE": _byte_level,
    "SentencePiece BPE": _sentencepiece,
    "Unigram": _unigram,
    "WordPiece": _word_piece,
    "WordLevel": _word_level,
}
TEMPLATES = {
    "nothing": None,
    "begin": processors.TemplateProcessing("<s> $A", "<s> $A <s> $B", [("<s>", 1)]),
    "both": processors.TemplateProcessing("<s> $A </s>", "$A $B", [("<s>", 1), ("</s>", 2)]),
    "as BERT": processors.BertProcessing(("</s>", 2), ("<s>", 1)),
    "after bytes": processors.Sequence([
        processors.ByteLevel(),
        processors.TemplateProcessing("<s> $A", "$A $B", [("<s>", 1)]),
    ]),
}
NAMES = {"bos_token": "<s>", "eos_token": "</s>", "unk_token": "<unk>", "tokenizer_class": "PreTrainedTokenizerFast"}
BESIDE = {
    "names": {"tokenizer_config.json": NAMES},
    "declared tokens": {
        "tokenizer_config.json": NAMES
        | {
            "added_tokens_decoder": {
                "1000": {"content": "<|two|>", "special": False, "normalized": True, "lstrip": True},
                "999": {"content": "<tool>", "special": True, "rstrip": True, "normalized": False},
            }
        }
    },
    "older files": {
        "tokenizer_config.json": {"tokenizer_class": "PreTrainedTokenizerFast"},
        "special_tokens_map.json": {"eos_token": {"content": "</s>", "lstrip": False}, "pad_token": "<tool>"},
        "added_tokens.json": {"<|two|>": 1000},
    },
    "more names": {
        "tokenizer_config.json": NAMES
        | {"pad_token": "<|two|>", "extra_special_tokens": ["<tool>"], "add_prefix_space": True, "legacy": False}
    },
    "switches beside a template": {"tokenizer_config.json": NAMES | {"add_bos_token": False, "add_eos_token": False}},
}


@pytest.fixture(scope="module", params=KINDS)
def trained(request):
    backend, trainer = KINDS[request.param]()
    backend.train_from_iterator(CORPUS, trainer)
    backend.add_tokens([AddedToken("<tool>", lstrip=True)] if request.param == "WordPiece" else [])
    backend.enable_truncation(5)
    backend.enable_padding(length=9)
    return backend


@pytest.mark.parametrize(("template", "beside"), itertools.product(TEMPLATES, BESIDE))
def test_ids_and_what_stands_around_them_are_those_of_transformers(trained, tmp_path, template, beside):
    backend = tokenizers.Tokenizer.from_str(trained.to_str())
    if TEMPLATES[template] is not None:
        backend.post_processor = TEMPLATES[template]
    backend.save(str(tmp_path / "tokenizer.json"))
    for name, content in BESIDE[beside].items():
        (tmp_path / name).write_text(json.dumps(content))
    save_tokenizer(load_tokenizer(tmp_path), tmp_path / "again")
    theirs = AutoTokenizer.from_pretrained(tmp_path)
    for folder in (tmp_path, tmp_path / "again"):
        ours = load_tokenizer(folder)
        assert ours.encode_batch(TEXTS) == [theirs(text, add_special_tokens=False).input_ids for text in TEXTS]
        assert [[*ours.begin, *ours.encode(text), *ours.end] for text in TEXTS] == [theirs(t).input_ids for t in TEXTS]
        assert (ours.bos_id, ours.eos_id) == (theirs.bos_token_id, theirs.eos_token_id)
    again = AutoTokenizer.from_pretrained(tmp_path / "again")
    assert [again(text).input_ids for text in TEXTS] == [theirs(text).input_ids for text in TEXTS]
