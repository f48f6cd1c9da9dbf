"""The embedded base's tokenizer: byte-level BPE, CLIP's layout, every word of the world one token.

Any printable text encodes, since the alphabet holds every byte; the rare identifier tokens are
single tokens.
"""

from __future__ import annotations

import json
from collections.abc import Sequence

from tokenizers import Regex, Tokenizer, models, normalizers, pre_tokenizers, trainers
from transformers import CLIPTokenizer

CONTEXT_TOKENS = 32
BOS, EOS = "<|startoftext|>", "<|endoftext|>"
# Ties between merges fall by the numbers of the letters that end words, which the trainer numbers
# in the order of a hash map: another one in every process. So they are given in a fixed order; any
# would do, but changing it would give the shipped weights' words other numbers.
LAST_LETTERS = "abcdehijkmoqsuvwxyzglnfrtp"


def build_tokenizer(words: Sequence[str], context_tokens: int = CONTEXT_TOKENS) -> CLIPTokenizer:
    """Train a BPE on `words` until each is one token."""
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    bpe = Tokenizer(models.BPE(end_of_word_suffix="</w>"))
    bpe.normalizer = normalizers.Sequence([normalizers.NFC(), normalizers.Lowercase()])
    bpe.pre_tokenizer = pre_tokenizers.Sequence(
        [
            pre_tokenizers.Split(Regex(r"\s+"), "removed"),
            pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False),
        ]
    )
    trainer = trainers.BpeTrainer(
        vocab_size=20_000,  # never reached: merges end when every word is whole
        min_frequency=1,
        initial_alphabet=alphabet,
        end_of_word_suffix="</w>",
        special_tokens=[*alphabet, *_endings(alphabet)],
        show_progress=False,
    )
    bpe.train_from_iterator([" ".join(words)], trainer)
    merges = _merges(bpe)
    pieces = [*alphabet, *(letter + "</w>" for letter in alphabet)]
    pieces += [left + right for left, right in merges]
    vocab = {piece: index for index, piece in enumerate(dict.fromkeys([*pieces, BOS, EOS]))}
    return CLIPTokenizer(vocab=vocab, merges=merges, model_max_length=context_tokens)


def _endings(alphabet: Sequence[str]) -> list[str]:
    """Every letter as the end of a word, in the order that decides ties."""
    others = [letter for letter in alphabet if letter not in LAST_LETTERS]
    return [f"{letter}</w>" for letter in (*others, *LAST_LETTERS)]


def _merges(bpe: Tokenizer) -> list[tuple[str, str]]:
    return [tuple(merge) for merge in json.loads(bpe.to_str())["model"]["merges"]]
