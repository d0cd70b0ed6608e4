"""Text to token ids and back, with the tokens that a model expects around every text."""

import json
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, Literal, NamedTuple, get_args

import tokenizers
from tokenizers import AddedToken, models, processors

from curvjax.data.tokens import require_unicode

BeginOfText = Literal["tokenizer", "always", "never"]

_ENDS = ("bos_token", "eos_token")
_NAMED = (*_ENDS, "unk_token", "sep_token", "pad_token", "cls_token", "mask_token")


class Around(NamedTuple):
    """Tokens that stand before and after every text, as they are written in the vocabulary."""

    begin_of_text: tuple[str, ...]
    end_of_text: tuple[str, ...]


class Tokenizer:
    """A `tokenizers.Tokenizer` with what a language model needs beside it.

    backend: the wrapped tokenizer; its post-processor says what stands around a text. bos_id, eos_id: first and last
    token of a document, None if unknown. vocab_size: one more than the largest id it can give. begin, end: ids that
    whoever reads a text puts before and after it: `encode` does not. rows: ids from here on are refused; None: none.
    """

    def __init__(
        self,
        backend: tokenizers.Tokenizer,
        *,
        bos_id: int | None = None,
        eos_id: int | None = None,
        begin_of_text: BeginOfText = "tokenizer",
        rows: int | None = None,
    ):
        """A tokenizer that puts nothing around, cuts and fills up no text by itself.

        Args:
          backend: truncation, padding and dropout of merges that were saved within it do not apply.
          bos_id: first token of a document.
          eos_id: last token of a document.
          begin_of_text: "tokenizer": `begin` is what the post-processor puts before a text; "always": that, or where it
            puts nothing the `bos_id`; "never": nothing.
          rows: rows of the model's embedding.

        Raises:
          ValueError: if `begin_of_text` is none of these, or "always" with nothing to begin with, or `begin` and `end`
            hold an id of `rows` or more.
        """
        backend.no_truncation()
        backend.no_padding()
        if isinstance(backend.model, models.BPE):
            backend.model.dropout = None  # a text would have other ids each time
        self.backend = backend
        self.bos_id, self.eos_id, self.rows = bos_id, eos_id, rows
        self.vocab_size = 1 + max(backend.get_vocab(with_added_tokens=True).values(), default=-1)
        before, self.end = _around(backend)
        self.begin = _begin(before, bos_id, begin_of_text)
        self._require_rows((*self.begin, *self.end))

    def encode(self, text: str) -> list[int]:
        """Token ids of `text`, with no special token added around it.

        Raises:
          ValueError: if it has half of a surrogate pair, or a token for which the model has no embedding.
        """
        try:
            ids = self.backend.encode(text, add_special_tokens=False).ids
        except TypeError:  # what the library says of half a surrogate pair
            require_unicode(text)
            raise
        self._require_rows(ids)
        return ids

    def encode_batch(self, texts: Sequence[str]) -> list[list[int]]:
        """`encode` of each text, on all cores."""
        for text in texts:
            require_unicode(text)
        found = [one.ids for one in self.backend.encode_batch(list(texts), add_special_tokens=False)]
        for ids in found:
            self._require_rows(ids)
        return found

    def decode(self, ids: Iterable[int]) -> str:
        """The text of token ids, special tokens spelled out."""
        return self.backend.decode([int(token) for token in ids], skip_special_tokens=False)

    @property
    def around(self) -> Around:
        """The tokens that stand before and after every text, for records."""
        return Around(*(tuple(str(self.backend.id_to_token(one)) for one in ids) for ids in (self.begin, self.end)))

    def _require_rows(self, ids: Sequence[int]) -> None:
        if self.rows is not None and max(ids, default=0) >= self.rows:
            token = next(token for token in ids if token >= self.rows)
            msg = (
                f"token {self.backend.id_to_token(token)!r} has id {token}, but the model's embedding ends at id "
                f"{self.rows - 1}: take it out of the text, or use a model that knows it."
            )
            raise ValueError(msg)


def fitted_tokenizer(
    tokenizer: Tokenizer, *, vocab_size: int, source: object, begin_of_text: BeginOfText = "tokenizer"
) -> Tokenizer:
    """The tokenizer for a model with `vocab_size` rows of embedding: ids beyond them are refused as they come.

    Tokens that were added to a vocabulary may lie beyond (Gemma 3's `<image_soft_token>`): most texts use none.

    Args:
      tokenizer: as its files describe it.
      vocab_size: the model's.
      source: named in errors.
      begin_of_text: as for `Tokenizer`.

    Raises:
      ValueError: if the vocabulary itself, without added tokens, has ids of `vocab_size` or more; or `begin_of_text`
        asks for a token that is not there.
    """
    largest = max(tokenizer.backend.get_vocab(with_added_tokens=False).values(), default=-1)
    if largest >= vocab_size:
        msg = (
            f"{source}: the tokenizer gives ids up to {largest}, but the model's vocabulary has {vocab_size} rows (ids "
            f"up to {vocab_size - 1}); the two do not belong together."
        )
        raise ValueError(msg)
    ends = {"bos_id": tokenizer.bos_id, "eos_id": tokenizer.eos_id}
    try:
        return Tokenizer(tokenizer.backend, **ends, begin_of_text=begin_of_text, rows=vocab_size)
    except ValueError as error:
        msg = f"{source}: {error}"
        raise ValueError(msg) from error


def load_tokenizer(directory: str | Path) -> Tokenizer:
    """The tokenizer of a Hugging Face model directory, with the ids that transformers gives.

    Tokens that only tokenizer_config.json, special_tokens_map.json or added_tokens.json name are added in the order of
    their ids. What stands around a text is what tokenizer.json's post-processor says; where it adds nothing,
    `add_bos_token` and `add_eos_token` of tokenizer_config.json. Ids of the first and last token come from
    tokenizer_config.json, else generation_config.json, else config.json.

    Raises:
      FileNotFoundError: if the directory has no tokenizer.json.
      ValueError: if a file is not what its name says.

    Source: `TokenizersBackend` of transformers 5. It disregards `add_bos_token` beside a tokenizer.json, where
    transformers 4 and whoever trained the models did not.
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
    config = _json(path.parent / "tokenizer_config.json")
    _add_named_tokens(path.parent, config, backend)
    bos, eos = (_special_id(path.parent, config, backend, key) for key in _ENDS)
    asked = [end if config.get(f"add_{key}") else None for key, end in zip(_ENDS, (bos, eos), strict=True)]
    if not any(_around(backend)):
        with_ends(backend, begin=asked[0], end=asked[1])
    return Tokenizer(backend, bos_id=bos, eos_id=eos)


def with_ends(backend: tokenizers.Tokenizer, *, begin: int | None, end: int | None) -> None:
    """Let the post-processor put these ids before and after a text; None: nothing."""
    names = {number: _template_name(backend, number) for number in (begin, end) if number is not None}
    if not names:
        return
    single = [*([names[begin]] if begin is not None else []), "$A", *([names[end]] if end is not None else [])]
    pair = [*(f"{piece}:0" for piece in single), *(f"{piece}:1" for piece in single)]
    pair = [piece.replace("$A:1", "$B:1") for piece in pair]
    backend.post_processor = processors.TemplateProcessing(
        single=[f"{piece}:0" for piece in single],
        pair=pair,
        special_tokens=[
            {"id": name, "ids": [number], "tokens": [backend.id_to_token(number)]} for number, name in names.items()
        ],
    )


def save_tokenizer(tokenizer: Tokenizer, directory: str | Path) -> None:
    """Write tokenizer.json and tokenizer_config.json, from which `load_tokenizer` and transformers read it back.

    What stands around a text is saved as the files said it, whatever `begin_of_text` made of it.
    """
    directory = Path(directory)
    directory.mkdir(parents=True, exist_ok=True)
    tokenizer.backend.save(str(directory / "tokenizer.json"))
    text = json.dumps(tokenizer_config(tokenizer), indent=2, ensure_ascii=False) + "\n"
    (directory / "tokenizer_config.json").write_text(text, encoding="utf-8")


def tokenizer_config(tokenizer: Tokenizer) -> dict[str, Any]:
    """What tokenizer_config.json must say of a tokenizer that comes without one: class, first and last token."""
    ends = {"bos_token": tokenizer.bos_id, "eos_token": tokenizer.eos_id}
    named = {key: tokenizer.backend.id_to_token(token) for key, token in ends.items() if token is not None}
    before, after = _around(tokenizer.backend)  # for programs that look at these alone
    around = {"add_bos_token": bool(before), "add_eos_token": bool(after)}
    return named | around | {"tokenizer_class": "PreTrainedTokenizerFast"}


def _around(backend: tokenizers.Tokenizer) -> tuple[tuple[int, ...], tuple[int, ...]]:
    """Ids that the post-processor puts before and after a text, seen on a text of one token."""
    if backend.post_processor is None:
        return (), ()
    probe = tokenizers.Tokenizer(models.WordLevel({"x": 0}, unk_token="x"))
    probe.post_processor = backend.post_processor
    encoding = probe.encode("x")
    place = encoding.special_tokens_mask.index(0)
    return tuple(encoding.ids[:place]), tuple(encoding.ids[place + 1 :])


def _begin(before: tuple[int, ...], bos_id: int | None, begin_of_text: BeginOfText) -> tuple[int, ...]:
    if begin_of_text not in get_args(BeginOfText):
        msg = f"begin_of_text must be one of {', '.join(get_args(BeginOfText))}; got {begin_of_text!r}."
        raise ValueError(msg)
    if begin_of_text == "never":
        return ()
    if begin_of_text == "always" and not before:
        if bos_id is None:
            msg = "begin_of_text is 'always', but the tokenizer knows no first token (bos_token) to begin with."
            raise ValueError(msg)
        return (bos_id,)
    return before


def _template_name(backend: tokenizers.Tokenizer, number: int) -> str:
    name = str(backend.id_to_token(number))
    return f"token {number}" if ":" in name or name.startswith("$") else name  # both mean something in a template


def _add_named_tokens(directory: Path, config: Mapping[str, Any], backend: tokenizers.Tokenizer) -> None:
    """Add the tokens that files beside tokenizer.json name and it does not, in transformers' order."""
    path = directory / "tokenizer_config.json"
    declared, named = config.get("added_tokens_decoder"), dict(config)
    if declared is None:
        named |= _json(directory / "special_tokens_map.json")
        specials = [_content(named[key]) for key in _NAMED if named.get(key)]  # whatever they are: none may be hashed
        added = _json(directory / "added_tokens.json")
        if strange := {token: number for token, number in added.items() if not isinstance(number, int | str)}:
            msg = f"{directory / 'added_tokens.json'}: tokens need whole numbers; got {strange}."
            raise ValueError(msg)
        declared = {
            number: {"content": token, "special": token in specials, "normalized": token not in specials}
            for token, number in added.items()
        }
    try:
        listed = [_added_token(declared[key]) for key in sorted(declared, key=int)]
        extra = named.get("extra_special_tokens") or named.get("additional_special_tokens") or []
        ours = [key for key in named if key.endswith("_token") and key not in _NAMED]
        wanted = [named[key] for key in (*_NAMED, *ours) if isinstance(named.get(key), str | dict)]
        wanted += [*(extra.values() if isinstance(extra, dict) else extra)]
        specials = [_added_token(token) for token in wanted]
    except (AttributeError, TypeError, ValueError) as error:
        msg = f"{path}, or special_tokens_map.json and added_tokens.json beside it, describe no tokens: {error}."
        raise ValueError(msg) from error
    known = backend.get_added_tokens_decoder().values()
    spelled = {repr(token) for token in known}
    new = [token for token in listed if repr(token) not in spelled]
    contents = {token.content for token in (*known, *new)}
    for token in specials:
        if token.content not in contents:
            contents.add(token.content)
            new.append(token)
    backend.add_tokens(new)


def _content(token: Any) -> Any:
    return token.get("content") if isinstance(token, dict) else token


def _added_token(token: str | Mapping[str, Any]) -> AddedToken:
    if isinstance(token, str):
        return AddedToken(token, special=True)
    if not isinstance(token.get("content"), str):
        msg = f"{token!r} has no content"
        raise TypeError(msg)
    flags = {key: value for key, value in token.items() if key not in ("content", "__type", "id")}
    return AddedToken(token["content"], **({"special": True} | flags))


def _special_id(directory: Path, config: Mapping[str, Any], backend: tokenizers.Tokenizer, key: str) -> int | None:
    """The id of `bos_token` or `eos_token`; the first of several."""
    token = _content(config.get(key) or _json(directory / "special_tokens_map.json").get(key))
    if token is not None:
        if not isinstance(token, str):
            msg = f"{directory}: {key} is {token!r}; a tokenizer's files name it by its text."
            raise ValueError(msg)
        return backend.token_to_id(token)
    for name in ("generation_config.json", "config.json"):
        number = _json(directory / name).get(f"{key}_id")
        if number is not None:
            several = number if isinstance(number, list) else [number]
            return several[0] if several else None
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
