"""Tokenizers small enough to check by eye."""


class Characters:
    """One token a character, its code point; the end of a document is 0."""

    eos_id: int | None = 0

    def __init__(self, *, begin: tuple[int, ...] = (), end: tuple[int, ...] = ()):
        self.begin, self.end = begin, end

    def encode(self, text: str) -> list[int]:
        return [ord(character) for character in text]


class Words:
    """One token a word, with the blank before it, as byte-level tokenizers do: " a b" is " a", " b"."""

    eos_id: int | None = None
    begin: tuple[int, ...] = ()
    end: tuple[int, ...] = ()

    def __init__(self):
        self.ids: dict[str, int] = {}

    def encode(self, text: str) -> list[int]:
        words = [" " + word if place else word for place, word in enumerate(text.split(" "))]
        return [self.ids.setdefault(word, len(self.ids)) for word in words if word]
