"""Text to token ids and back: from tokenizer.json, or rebuilt from a GGUF file's metadata."""

import json
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import tokenizers
from tokenizers import AddedToken, Regex, decoders, models, normalizers, pre_tokenizers

_CONTROL, _USER_DEFINED, _BYTE = 3, 4, 6  # tokenizer.ggml.token_type
_SPACE = "\u2581"  # SentencePiece's visible space
_CONTRACTIONS = r"(?i:'s|'t|'re|'ve|'m|'ll|'d)"
_WORDS = r"[^\r\n\p{L}\p{N}]?\p{L}+"
_REST = r" ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"


class Tokenizer:
    """A `tokenizers.Tokenizer` with the ids that a language model needs beside it.

    backend: the wrapped tokenizer. bos_id, eos_id: first and last token of a document, None if unknown. vocab_size:
    one more than the largest id it can give.
    """

    def __init__(self, backend: tokenizers.Tokenizer, *, bos_id: int | None = None, eos_id: int | None = None):
        backend.no_truncation()
        backend.no_padding()
        self.backend = backend
        self.bos_id, self.eos_id = bos_id, eos_id
        self.vocab_size = 1 + max(backend.get_vocab(with_added_tokens=True).values(), default=-1)

    def encode(self, text: str) -> list[int]:
        """Token ids of `text`, with no special token added around it."""
        return self.backend.encode(text, add_special_tokens=False).ids

    def encode_batch(self, texts: Sequence[str]) -> list[list[int]]:
        """`encode` of each text, on all cores."""
        return [encoding.ids for encoding in self.backend.encode_batch(list(texts), add_special_tokens=False)]

    def decode(self, ids: Iterable[int]) -> str:
        """The text of token ids, special tokens spelled out."""
        return self.backend.decode([int(token) for token in ids], skip_special_tokens=False)


def check_vocabulary(tokenizer: Tokenizer, *, vocab_size: int, source: object) -> None:
    """Refuse a tokenizer that can give ids for which the model has no embedding.

    Raises:
      ValueError: if the largest id is `vocab_size` or more; names `source` and both numbers.
    """
    if tokenizer.vocab_size > vocab_size:
        msg = (
            f"{source}: the tokenizer gives ids up to {tokenizer.vocab_size - 1}, but the model's vocabulary has "
            f"{vocab_size} rows (ids up to {vocab_size - 1}); the two do not belong together."
        )
        raise ValueError(msg)


def load_tokenizer(directory: str | Path) -> Tokenizer:
    """The tokenizer of a Hugging Face model directory.

    Ids of the first and last token come from tokenizer_config.json, else generation_config.json, else config.json.

    Raises:
      FileNotFoundError: if the directory has no tokenizer.json.
      ValueError: if a file is not what its name says, or names a token that the vocabulary lacks.
    """
    path = Path(directory) / "tokenizer.json"
    if not path.is_file():
        msg = f"{path}: no such file. Only the `tokenizers` format is read: save a fast tokenizer beside the model."
        raise FileNotFoundError(msg)
    try:
        backend = tokenizers.Tokenizer.from_file(str(path))
    except Exception as error:  # the library raises bare Exception
        msg = f"{path}: not a tokenizer.json: {error}."
        raise ValueError(msg) from error
    return Tokenizer(
        backend,
        bos_id=_special_id(path.parent, backend, "bos_token"),
        eos_id=_special_id(path.parent, backend, "eos_token"),
    )


def save_tokenizer(tokenizer: Tokenizer, directory: str | Path) -> None:
    """Write tokenizer.json and tokenizer_config.json, from which `load_tokenizer` and transformers read it back."""
    directory = Path(directory)
    directory.mkdir(parents=True, exist_ok=True)
    tokenizer.backend.save(str(directory / "tokenizer.json"))
    text = json.dumps(tokenizer_config(tokenizer), indent=2, ensure_ascii=False) + "\n"
    (directory / "tokenizer_config.json").write_text(text, encoding="utf-8")


def tokenizer_config(tokenizer: Tokenizer) -> dict[str, Any]:
    """What tokenizer_config.json must say of a tokenizer that comes without one: class, first and last token."""
    ends = {"bos_token": tokenizer.bos_id, "eos_token": tokenizer.eos_id}
    named = {key: tokenizer.backend.id_to_token(token) for key, token in ends.items() if token is not None}
    return named | {"tokenizer_class": "PreTrainedTokenizerFast"}


def tokenizer_from_gguf(metadata: Mapping[str, Any], *, source: object) -> Tokenizer:
    """The tokenizer that a GGUF file describes.

    Args:
      metadata: of `read_gguf`.
      source: named in errors.

    Returns:
      Byte-level BPE ("gpt2" with a known pre-tokenizer), or SentencePiece BPE ("llama").

    Raises:
      ValueError: if the kind or the pre-tokenizer is not one of these, or a list is missing or of another length.
    """
    kind = metadata.get("tokenizer.ggml.model")
    if kind not in _KINDS:
        msg = f"{source}: tokenizer.ggml.model {kind!r} is not supported; known: {sorted(_KINDS)}."
        raise ValueError(msg)
    tokens, types = _column(metadata, source, "tokens", list), _column(metadata, source, "token_type", np.ndarray)
    backend = _KINDS[kind](metadata, source)
    marked = [(token, int(kind)) for token, kind in zip(tokens, types, strict=True)]
    backend.add_special_tokens([AddedToken(t, special=True, normalized=False) for t, k in marked if k == _CONTROL])
    backend.add_tokens([AddedToken(t, normalized=False) for t, k in marked if k == _USER_DEFINED])
    return Tokenizer(
        backend,
        bos_id=_token_id(metadata, source, "bos_token_id", len(tokens)),
        eos_id=_token_id(metadata, source, "eos_token_id", len(tokens)),
    )


def _special_id(directory: Path, backend: tokenizers.Tokenizer, key: str) -> int | None:
    """The id of `bos_token` or `eos_token`; the first of several."""
    path = directory / "tokenizer_config.json"
    token = _json(path).get(key)
    token = token.get("content") if isinstance(token, dict) else token
    if token is not None:
        number = backend.token_to_id(token)
        if number is None:
            msg = f"{path}: {key} {token!r} is not in the vocabulary of tokenizer.json."
            raise ValueError(msg)
        return number
    for name in ("generation_config.json", "config.json"):
        number = _json(directory / name).get(f"{key}_id")
        if number is not None:
            return number[0] if isinstance(number, list) else number
    return None


def _json(path: Path) -> dict[str, Any]:
    if not path.is_file():
        return {}
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except ValueError as error:
        msg = f"{path}: not JSON: {error}."
        raise ValueError(msg) from error
    if not isinstance(content, dict):
        msg = f"{path}: expected a JSON object, found {type(content).__name__}."
        raise ValueError(msg)
    return content


def _column(metadata: Mapping[str, Any], source: object, name: str, kind: type) -> Any:
    """A list of the metadata: strings (`list`) or numbers (`np.ndarray`), one for each token unless it is merges."""
    found: Any = metadata.get(f"tokenizer.ggml.{name}")
    if not isinstance(found, kind):
        what = "strings" if kind is list else "numbers"
        msg = f"{source}: tokenizer.ggml.{name} must be an array of {what}; found {type(found).__name__}."
        raise ValueError(msg)
    count = len(metadata["tokenizer.ggml.tokens"])
    if name != "merges" and len(found) != count:
        msg = f"{source}: tokenizer.ggml.{name} has {len(found)} entries for {count} tokens."
        raise ValueError(msg)
    return found


def _token_id(metadata: Mapping[str, Any], source: object, name: str, count: int) -> int | None:
    number = metadata.get(f"tokenizer.ggml.{name}")
    if number is not None and (not isinstance(number, int) or not 0 <= number < count):
        msg = f"{source}: tokenizer.ggml.{name} must be a token number below {count}; found {number!r}."
        raise ValueError(msg)
    return number


def _digits_then_bytes() -> pre_tokenizers.PreTokenizer:
    bytes_with_regex = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=True)
    return pre_tokenizers.Sequence([pre_tokenizers.Digits(individual_digits=True), bytes_with_regex])


def _split_then_bytes(digits: str) -> pre_tokenizers.PreTokenizer:
    pattern = Regex(f"{_CONTRACTIONS}|{_WORDS}|{digits}|{_REST}")
    byte_level = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    return pre_tokenizers.Sequence([pre_tokenizers.Split(pattern, "isolated"), byte_level])


_PRE_TOKENIZERS = {
    "gpt-2": lambda: pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=True),
    "smollm": _digits_then_bytes,
    "qwen2": lambda: _split_then_bytes(r"\p{N}"),
    "llama-bpe": lambda: _split_then_bytes(r"\p{N}{1,3}"),
}


def _byte_level_bpe(metadata: Mapping[str, Any], source: object) -> tokenizers.Tokenizer:
    """Byte-level BPE from tokens and merges ("left right", best first)."""
    split = metadata.get("tokenizer.ggml.pre")
    if split not in _PRE_TOKENIZERS:
        msg = f"{source}: tokenizer.ggml.pre {split!r} is not supported; known: {sorted(_PRE_TOKENIZERS)}."
        raise ValueError(msg)
    tokens = _column(metadata, source, "tokens", list)
    merges = [tuple(merge.split(" ")) for merge in _column(metadata, source, "merges", list)]
    vocabulary = {token: index for index, token in enumerate(tokens)}
    unknown = [pair for pair in merges if len(pair) != 2 or not {*pair, "".join(pair)} <= vocabulary.keys()]
    if unknown:
        msg = f"{source}: {len(unknown)} of tokenizer.ggml.merges do not join two tokens to one, e.g. {unknown[0]}."
        raise ValueError(msg)
    # Llama 3 keeps whole words of the vocabulary that its merges do not reach
    backend = tokenizers.Tokenizer(models.BPE(vocabulary, merges, ignore_merges=split == "llama-bpe"))
    if split == "qwen2":
        backend.normalizer = normalizers.NFC()
    backend.pre_tokenizer = _PRE_TOKENIZERS[split]()
    backend.decoder = decoders.ByteLevel()
    return backend


def _sentencepiece_bpe(metadata: Mapping[str, Any], source: object) -> tokenizers.Tokenizer:
    """SentencePiece BPE: pieces with scores, unknown characters as bytes.

    It joins the neighbours whose joint piece scores best, so every way of cutting a piece in two is a merge, ordered
    by the piece's score. The space that begins a text follows every special token too, as in llama.cpp and in
    published tokenizer.json files.
    """
    tokens = _column(metadata, source, "tokens", list)
    scores, types = (_column(metadata, source, name, np.ndarray) for name in ("scores", "token_type"))
    vocabulary = {token: index for index, token in enumerate(tokens)}
    ordinary = [index for index in range(len(tokens)) if types[index] not in {_CONTROL, _BYTE}]
    merges = [
        (tokens[index][:cut], tokens[index][cut:])
        for index in sorted(ordinary, key=lambda index: -scores[index])
        for cut in range(1, len(tokens[index]))
        if tokens[index][:cut] in vocabulary and tokens[index][cut:] in vocabulary
    ]
    unknown = tokens[_token_id(metadata, source, "unknown_token_id", len(tokens)) or 0]
    backend = tokenizers.Tokenizer(models.BPE(vocabulary, merges, unk_token=unknown, fuse_unk=True, byte_fallback=True))
    prefixed = metadata.get("tokenizer.ggml.add_space_prefix", True)
    spaces = normalizers.Replace(" ", _SPACE)
    backend.normalizer = normalizers.Sequence([normalizers.Prepend(_SPACE), spaces]) if prefixed else spaces
    strip = [decoders.Strip(" ", 1, 0)] if prefixed else []
    backend.decoder = decoders.Sequence([
        decoders.Replace(_SPACE, " "),
        decoders.ByteFallback(),
        decoders.Fuse(),
        *strip,
    ])
    return backend


_KINDS = {"gpt2": _byte_level_bpe, "llama": _sentencepiece_bpe}
