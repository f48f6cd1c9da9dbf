"""The embedded base's tokenizer: every text encodes, every word of the world is one token."""

from __future__ import annotations

import functools
from pathlib import Path

from hypothesis import given, settings
from hypothesis import strategies as st
from transformers import CLIPTokenizer

from dreamfleet.training.pretraining.tokenizer import CONTEXT_TOKENS, build_tokenizer
from dreamfleet.world.captions import RARE_TOKENS, vocabulary_words


@functools.cache
def tokenizer() -> CLIPTokenizer:
    return build_tokenizer(vocabulary_words())


def ids(text: str) -> list[int]:
    return list(tokenizer()(text, add_special_tokens=False).input_ids)


def round_trip(text: str) -> str:
    return str(tokenizer().decode(ids(text), clean_up_tokenization_spaces=False))


@settings(max_examples=100, deadline=None)
@given(st.text(st.characters(categories=("L", "N", "P", "S")), min_size=1, max_size=12))
def test_any_printable_text_encodes_without_loss(word: str) -> None:
    assert tokenizer().unk_token_id not in ids(word) or "<|endoftext|>" in word
    again = round_trip(word)
    assert ids(again) == ids(word)
    if word.isascii():
        assert again.replace(" ", "") == word.lower()


def test_sentences_come_back() -> None:
    for text in ("a photo of sks dog in the snow", "ein Foto von Zoë, 日本 und 🙂!"):
        assert round_trip(text).split() == text.lower().split() or "🙂" in text
        assert round_trip(text).replace(" ", "") == text.lower().replace(" ", "")


def test_every_word_of_the_world_is_one_token() -> None:
    words = vocabulary_words()
    assert [word for word in words if len(ids(word)) != 1] == []
    assert len({ids(word)[0] for word in words}) == len(words)


def test_words_have_the_numbers_that_the_shipped_weights_were_trained_with() -> None:
    """The library's trainer breaks ties differently in every process; ours must not."""
    words = ("of", "on", "an", "in", "cat", "car", "pop")
    assert [ids(word)[0] for word in words] == [570, 569, 587, 633, 751, 750, 762]


def test_rare_tokens_are_single_and_many() -> None:
    assert RARE_TOKENS[0] == "sks"
    assert len(RARE_TOKENS) > 12
    assert all(len(ids(token)) == 1 for token in RARE_TOKENS)


def test_context_is_long_enough_and_padded() -> None:
    assert CONTEXT_TOKENS >= 32
    out = tokenizer()(["", "word " * 99], padding="max_length", truncation=True).input_ids
    assert [len(row) for row in out] == [CONTEXT_TOKENS] * 2
    assert out[0][0] == tokenizer().bos_token_id
    assert out[0][1] == out[1][-1] == tokenizer().eos_token_id


def test_saved_and_loaded_it_is_the_same(tmp_path: Path) -> None:
    tokenizer().save_pretrained(tmp_path)
    loaded = CLIPTokenizer.from_pretrained(tmp_path, local_files_only=True)
    for text in ("a photo of sks dog", "Größe, 42 %!", " ".join(RARE_TOKENS)):
        assert loaded(text).input_ids == tokenizer()(text).input_ids
    assert loaded.model_max_length == CONTEXT_TOKENS
