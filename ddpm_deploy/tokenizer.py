"""Text to whole numbers: known words have one each, any other word is spelled byte by byte."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np
from numpy.typing import NDArray

KIND = "words"
PADDING = 0
BYTES = 256
FIRST_WORD = 1 + BYTES  # 0 is padding, 1 ... 256 are the bytes
SPACE = 1 + ord(" ")
MAX_WORDS = 50_000
MAX_LENGTH = 1024
MAX_WORD = 64


@dataclass(frozen=True)
class Tokenizer:
    """Words and bytes to numbers.

    Case and the amount of white space carry no meaning. Number 0 is padding, so no text at all is all zeros;
    1 + b is byte b of UTF-8; `FIRST_WORD + i` is word i of the vocabulary. Two words in a row that are both spelled
    have a space between them, so that `decode` gives back every text.

    vocabulary: lower-case words without white space, all different. length: of every row; a longer text is refused.
    """

    vocabulary: tuple[str, ...]
    length: int

    def __post_init__(self) -> None:
        if type(self.length) is not int or not 1 <= self.length <= MAX_LENGTH:
            raise ValueError(f"length: got {self.length!r}, expected a whole number from 1 to {MAX_LENGTH}")
        if len(self.vocabulary) > MAX_WORDS:
            raise ValueError(f"vocabulary: got {len(self.vocabulary)} words, expected at most {MAX_WORDS}")
        for word in self.vocabulary:
            if not isinstance(word, str) or normalise(word) != word or len(word.split()) != 1 or len(word) > MAX_WORD:
                raise ValueError(f"vocabulary: got {word!r}, expected a lower-case word of 1 to {MAX_WORD} characters")
        if len(self._numbers) != len(self.vocabulary):
            raise ValueError("vocabulary: got a word twice, expected all different")

    @cached_property
    def _numbers(self) -> dict[str, int]:
        return {word: FIRST_WORD + i for i, word in enumerate(self.vocabulary)}

    @property
    def size(self) -> int:
        """How many different numbers there are."""
        return FIRST_WORD + len(self.vocabulary)

    def encode(self, texts: str | Sequence[str]) -> NDArray[np.int64]:
        """Numbers (n, length) of n texts, or (length,) of one; ValueError for a text that is too long."""
        if isinstance(texts, str):
            return self.encode([texts])[0]
        rows = np.full((len(texts), self.length), PADDING, np.int64)
        for row, text in zip(rows, texts, strict=True):
            numbers = self._encoded(text)
            row[: len(numbers)] = numbers
        return rows

    def _encoded(self, text: str) -> list[int]:
        if not isinstance(text, str):
            raise ValueError(f"prompt: got {type(text).__name__}, expected text")
        numbers: list[int] = []
        spelled = False
        for word in normalise(text).split():
            known = self._numbers.get(word)
            if known is None:
                numbers += [SPACE] * spelled + [1 + byte for byte in word.encode()]
            else:
                numbers.append(known)
            spelled = known is None
        if len(numbers) > self.length:
            raise ValueError(
                f"prompt: {text!r} takes {len(numbers)} tokens, expected at most {self.length}; "
                "shorten it, or use words that the model knows"
            )
        return numbers

    def unknown(self, texts: Iterable[str]) -> list[str]:
        """The words of texts that are spelled byte by byte, each once."""
        found = dict.fromkeys(word for text in texts for word in normalise(text).split())
        return [word for word in found if word not in self._numbers]

    def decode(self, numbers: Sequence[int] | NDArray[np.int64]) -> str:
        """The text of one row, as `normalise` has it; bytes that are no UTF-8 become the replacement character."""
        words: list[bytes] = []
        spelled = False
        for number in map(int, numbers):
            if not 0 <= number < self.size:
                raise ValueError(f"token: got {number}, expected 0 to {self.size - 1}")
            if number == PADDING:
                continue
            is_byte = number < FIRST_WORD
            piece = bytes([number - 1]) if is_byte else self.vocabulary[number - FIRST_WORD].encode()
            words += [piece] if is_byte and spelled else [b" ", piece]
            spelled = is_byte
        return normalise(b"".join(words).decode(errors="replace"))

    def to_dict(self) -> dict[str, Any]:
        """Plain JSON values."""
        return {"kind": KIND, "vocabulary": list(self.vocabulary), "length": self.length}

    @classmethod
    def from_dict(cls, data: Mapping[str, Any]) -> Tokenizer:
        """Read what `to_dict` wrote; ValueError for anything else."""
        words = data.get("vocabulary")
        if set(data) != {"kind", "vocabulary", "length"} or data["kind"] != KIND or not isinstance(words, list | tuple):
            raise ValueError(f"tokenizer: got {data!r:.100}, expected kind {KIND!r}, vocabulary (a list) and length")
        return cls(tuple(words), data["length"])


def normalise(text: str) -> str:
    """Lower case, one space between words, none around them."""
    return re.sub(r"\s+", " ", text.lower()).strip()
