"""The tokenizer: every text has numbers and comes back from them, and nothing is silently cut off."""

from __future__ import annotations

import subprocess
import sys

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from ddpm_deploy.tokenizer import FIRST_WORD, MAX_LENGTH, PADDING, Tokenizer, normalise

WORDS = ("a", "blue", "circle", "of", "red", "square", "é")
LENGTH = 256

texts = st.one_of(
    st.text(max_size=30),
    st.lists(st.sampled_from([*WORDS, "zebra", "Ωmega", "  ", "a-b", "\U0001f600"]), max_size=12).map(" ".join),
)


@pytest.fixture(scope="module")
def tokenizer() -> Tokenizer:
    return Tokenizer(WORDS, LENGTH)


@given(text=texts)
def test_every_text_comes_back_but_for_case_and_spaces(text: str) -> None:
    tokenizer = Tokenizer(WORDS, LENGTH)
    numbers = tokenizer.encode(text)
    assert numbers.shape == (LENGTH,)
    assert numbers.dtype == np.int64
    assert tokenizer.decode(numbers) == normalise(text)


@given(one=texts, other=texts)
def test_texts_that_differ_have_different_numbers(one: str, other: str) -> None:
    tokenizer = Tokenizer(WORDS, LENGTH)
    same = np.array_equal(tokenizer.encode(one), tokenizer.encode(other))
    assert same == (normalise(one) == normalise(other))


@given(numbers=st.lists(st.integers(0, FIRST_WORD + len(WORDS) - 1), max_size=40))
def test_any_numbers_in_range_have_a_text(numbers: list[int]) -> None:
    assert isinstance(Tokenizer(WORDS, LENGTH).decode(numbers), str)


def test_a_known_word_is_one_number_and_another_is_its_bytes(tokenizer: Tokenizer) -> None:
    assert tokenizer.encode("Red  CIRCLE")[:3].tolist() == [FIRST_WORD + 4, FIRST_WORD + 2, PADDING]
    assert tokenizer.encode("ox")[:3].tolist() == [1 + ord("o"), 1 + ord("x"), PADDING]


def test_unknown_words_are_those_that_are_spelled(tokenizer: Tokenizer) -> None:
    word = tokenizer.vocabulary[0]
    assert tokenizer.unknown([f"{word.upper()} gizmo", f"gizmo {word} widget"]) == ["gizmo", "widget"]
    assert tokenizer.unknown([word, ""]) == []


def test_two_spelled_words_are_not_one(tokenizer: Tokenizer) -> None:
    assert tokenizer.encode("o x")[:4].tolist() == [1 + ord("o"), 1 + ord(" "), 1 + ord("x"), PADDING]


def test_no_text_is_all_padding_and_padding_is_zero(tokenizer: Tokenizer) -> None:
    assert PADDING == 0
    assert not tokenizer.encode(["", "  \n "]).any()


def test_many_texts_are_rows(tokenizer: Tokenizer) -> None:
    rows = tokenizer.encode(["a red circle", "ox"])
    assert rows.shape == (2, LENGTH)
    np.testing.assert_array_equal(rows[1], tokenizer.encode("ox"))


def test_a_text_that_is_too_long_is_refused_not_cut() -> None:
    with pytest.raises(ValueError, match=r"prompt: 'a red circle' takes 3 tokens, expected at most 2; shorten"):
        Tokenizer(WORDS, 2).encode("a red circle")


def test_what_is_no_text_is_refused(tokenizer: Tokenizer) -> None:
    with pytest.raises(ValueError, match=r"prompt: got int, expected text"):
        tokenizer.encode([7])  # type: ignore[list-item]


@pytest.mark.parametrize("number", [-1, FIRST_WORD + len(WORDS)])
def test_a_number_that_means_nothing_is_refused(tokenizer: Tokenizer, number: int) -> None:
    with pytest.raises(ValueError, match=f"token: got {number}, expected 0 to {tokenizer.size - 1}"):
        tokenizer.decode([number])


@pytest.mark.parametrize(
    ("vocabulary", "length", "message"),
    [
        (("a", "a"), 8, "vocabulary: got a word twice"),
        (("Red",), 8, "vocabulary: got 'Red', expected a lower-case word"),
        (("two words",), 8, "vocabulary: got 'two words'"),
        (("",), 8, "vocabulary: got ''"),
        ((3,), 8, "vocabulary: got 3"),
        (("x" * 65,), 8, "vocabulary: got 'xxx"),
        (("a",), 0, "length: got 0, expected a whole number from 1 to"),
        (("a",), MAX_LENGTH + 1, "length: got"),
        (("a",), True, "length: got True"),
    ],
)
def test_a_tokenizer_that_could_not_work_is_refused(vocabulary: tuple[str, ...], length: int, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        Tokenizer(vocabulary, length)


def test_it_survives_json_and_nothing_else_does(tokenizer: Tokenizer) -> None:
    assert Tokenizer.from_dict(tokenizer.to_dict()) == tokenizer
    for change in ({"kind": "bytes"}, {"vocabulary": "abc"}, {"more": 1}):
        with pytest.raises(ValueError, match="tokenizer: got"):
            Tokenizer.from_dict(tokenizer.to_dict() | change)


def test_it_needs_no_torch() -> None:
    code = "import ddpm_deploy.tokenizer, sys; assert not {'torch', 'onnx'} & set(sys.modules)"
    subprocess.run([sys.executable, "-c", code], check=True)
