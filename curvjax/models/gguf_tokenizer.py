"""The tokenizer that a GGUF file's metadata describe.

Source: the defaults are those of llama.cpp's llama-vocab.cpp, the names those of its converters.
"""

from collections.abc import Mapping
from typing import Any

import numpy as np
import tokenizers
from tokenizers import AddedToken, Regex, decoders, models, normalizers, pre_tokenizers

from curvjax.models.tokenizer import Tokenizer, with_ends

_CONTROL, _USER_DEFINED, _BYTE = 3, 4, 6  # tokenizer.ggml.token_type
_SPACE = "\u2581"  # SentencePiece's visible space
_CONTRACTIONS = r"(?i:'s|'t|'re|'ve|'m|'ll|'d)"
_WORDS = r"[^\r\n\p{L}\p{N}]?\p{L}+"
_REST = r" ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"


def tokenizer_from_gguf(metadata: Mapping[str, Any], *, source: object) -> Tokenizer:
    """The tokenizer that a GGUF file describes.

    Args:
      metadata: of `read_gguf`.
      source: named in errors.

    Returns:
      Byte-level BPE ("gpt2" with a known pre-tokenizer), or SentencePiece BPE ("llama"). What stands around a text
      follows `add_bos_token` and `add_eos_token`, where these are missing the kind's defaults.

    Raises:
      ValueError: if the kind or the pre-tokenizer is not one of these, a list is missing or of another length, or a
        switch is neither true nor false.
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
    bos, eos = (_token_id(metadata, source, f"{end}_token_id", len(tokens)) for end in ("bos", "eos"))
    begins = kind == "llama" or metadata.get("tokenizer.ggml.pre") == "llama-bpe"  # where the file does not say
    with_ends(
        backend,
        begin=bos if _switch(metadata, source, "add_bos_token", default=begins) else None,
        end=eos if _switch(metadata, source, "add_eos_token", default=False) else None,
    )
    return Tokenizer(backend, bos_id=bos, eos_id=eos)


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


def _switch(metadata: Mapping[str, Any], source: object, name: str, *, default: bool) -> bool:
    found = metadata.get(f"tokenizer.ggml.{name}", default)
    if not isinstance(found, bool):
        msg = f"{source}: tokenizer.ggml.{name} must be true or false; found {found!r}."
        raise ValueError(msg)
    return found


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
