"""Training a vocabulary so that the same texts give the same ids, on any number of cores.

Trap: `tokenizers` numbers the ``##x`` characters of WordPiece in the order of a randomly seeded hash map, so two
trainings on the same text give other ids, and break ties between merges otherwise. Here every character and its
``##`` form is given its number beforehand. Byte-level BPE starts from the fixed alphabet of 256 bytes and has no
such freedom.
"""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Callable, Iterable
from typing import Any

from pipeline.base.errors import UserError

WORDPIECE_SPECIAL_TOKENS = ("[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]")
_CONTINUATION = "##"
_LARGEST_ALPHABET = 1000
_MIN_PAIR_COUNT = 2


def train_wordpiece(
    texts: Callable[[], Iterable[str]], vocab_size: int, lowercase: bool, normalizer: Any, pre_tokenizer: Any
) -> dict[str, int]:
    """A WordPiece vocabulary, special tokens first.

    Args:
        texts: gives the texts, twice (the characters are counted first).
        normalizer, pre_tokenizer: those of the tokenizer that will use the vocabulary.

    Raises:
        UserError: the texts hold no word.
    """
    from tokenizers import Tokenizer, models, trainers

    counts: Counter[str] = Counter()
    for text in texts():
        counts.update(normalizer.normalize_str(text))
    characters = [character for character in counts if not character.isspace()]
    if not characters:
        raise UserError("The documents hold no characters to train a tokenizer on.")
    # Two ids a character (`x` and `##x`): at most two thirds of the vocabulary goes to characters.
    size = min(_LARGEST_ALPHABET, max(1, vocab_size // 3))
    alphabet = sorted(sorted(characters, key=lambda character: (-counts[character], character))[:size])
    tokenizer = Tokenizer(models.WordPiece(unk_token="[UNK]"))
    tokenizer.normalizer = normalizer
    tokenizer.pre_tokenizer = pre_tokenizer
    numbered_first = [*alphabet, *(_CONTINUATION + character for character in alphabet)]
    trainer = trainers.WordPieceTrainer(
        vocab_size=max(vocab_size - len(WORDPIECE_SPECIAL_TOKENS), len(numbered_first)),
        min_frequency=_MIN_PAIR_COUNT,
        special_tokens=numbered_first,
        initial_alphabet=alphabet,
        limit_alphabet=len(alphabet),
        continuing_subword_prefix=_CONTINUATION,
        show_progress=False,
    )
    tokenizer.train_from_iterator(texts(), trainer)
    pieces = json.loads(tokenizer.to_str())["model"]["vocab"]
    ordered = [piece for piece, _ in sorted(pieces.items(), key=lambda item: item[1])]
    return {piece: number for number, piece in enumerate([*WORDPIECE_SPECIAL_TOKENS, *ordered])}


def train_byte_bpe(
    texts: Callable[[], Iterable[str]], vocab_size: int, first: tuple[str, ...], last: tuple[str, ...]
) -> tuple[dict[str, int], list[tuple[str, str]]]:
    """A byte-level BPE vocabulary and its merges.

    Args:
        first, last: special tokens before and behind the trained pieces; RoBERTa and GPT-2 order them so.
    """
    from tokenizers import Tokenizer, models, pre_tokenizers, trainers

    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    trainer = trainers.BpeTrainer(
        vocab_size=vocab_size - len(first) - len(last),
        min_frequency=_MIN_PAIR_COUNT,
        initial_alphabet=sorted(pre_tokenizers.ByteLevel.alphabet()),
        show_progress=False,
    )
    tokenizer.train_from_iterator(texts(), trainer)
    model = json.loads(tokenizer.to_str())["model"]
    ordered = [piece for piece, _ in sorted(model["vocab"].items(), key=lambda item: item[1])]
    vocabulary = {piece: number for number, piece in enumerate([*first, *ordered, *last])}
    return vocabulary, [(left, right) for left, right in model["merges"]]
