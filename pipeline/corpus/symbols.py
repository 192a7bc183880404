"""Tokenizers without a stock class of their own: Unigram, characters, k-mers and integers.

Each is a `tokenizers` pipeline under ``PreTrainedTokenizerFast`` with the special tokens of the chosen style, so that
`AutoTokenizer` loads it without this project.

Trap: the Unigram trainer gives the characters that its pruning left over ascending scores in the order of a
randomly seeded hash map, and sums in that order too, so two trainings on the same text give other scores. Here those
characters are put in the order of the alphabet and all scores are rounded; see :func:`train_unigram`.
"""

from __future__ import annotations

import json
import re
from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from itertools import product
from typing import Any, Final

from pipeline.base.errors import UserError
from pipeline.config.corpus import TokenizerConfig

SPACE_MARK: Final = "\u2581"
_LARGEST_ALPHABET = 10_000
_SCORE_DIGITS = 6
_LEFT_OVER_STEP = 1e-4
"""By so much the trainer raises the score from one left-over character to the next, from the lowest of a piece on."""
_STEP_TOLERANCE = 1e-3


@dataclass(frozen=True)
class Style:
    """The special tokens of a family of models."""

    first: tuple[str, ...]
    """Before the vocabulary."""

    last: tuple[str, ...]
    """Behind it."""

    roles: dict[str, str]
    """Token by argument of ``PreTrainedTokenizerFast``."""

    single: str = ""
    """How a text is framed, as ``TemplateProcessing`` writes it; empty: not at all."""

    pair: str = ""
    """How two texts are framed."""


STYLES: Final = {
    "bert": Style(
        first=("[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]"),
        last=(),
        roles={
            "pad_token": "[PAD]",
            "unk_token": "[UNK]",
            "cls_token": "[CLS]",
            "sep_token": "[SEP]",
            "mask_token": "[MASK]",
        },
        single="[CLS] $A [SEP]",
        pair="[CLS] $A [SEP] $B:1 [SEP]:1",
    ),
    "roberta": Style(
        first=("<s>", "<pad>", "</s>", "<unk>"),
        last=("<mask>",),
        roles={
            "bos_token": "<s>",
            "cls_token": "<s>",
            "pad_token": "<pad>",
            "eos_token": "</s>",
            "sep_token": "</s>",
            "unk_token": "<unk>",
            "mask_token": "<mask>",
        },
        single="<s> $A </s>",
        pair="<s> $A </s> </s> $B </s>",
    ),
    # Byte-level BPE knows every text; these vocabularies do not, so the unknown token is one of its own here.
    "gpt2": Style(
        first=("<unk>",),
        last=("<|endoftext|>",),
        roles={"unk_token": "<unk>", "bos_token": "<|endoftext|>", "eos_token": "<|endoftext|>"},
    ),
}


def unigram_tokenizer(texts: Callable[[], Iterable[str]], vocab_size: int, style: Style) -> Any:
    """A SentencePiece-style Unigram tokenizer (Kudo 2018): NFKC, one space for white space, ``\u2581`` before words.

    Args:
        texts: gives the texts, twice (the characters are counted first).
        vocab_size: ids at most, special tokens included.

    Raises:
        UserError: the texts hold no character.
    """
    from tokenizers import Regex, Tokenizer, decoders, models, normalizers, pre_tokenizers

    normalizer = normalizers.Sequence(
        [normalizers.NFKC(), normalizers.Replace(Regex(r"\s+"), " "), normalizers.Strip()]
    )
    # The model takes pieces wherever they match, special tokens too: one written out in a text is cut beforehand.
    marks = "|".join(f"{re.escape(token[0])}(?={re.escape(token[1:])})" for token in (*style.first, *style.last))
    metaspace = pre_tokenizers.Metaspace(replacement=SPACE_MARK, prepend_scheme="always")
    pre_tokenizer = pre_tokenizers.Sequence([metaspace, pre_tokenizers.Split(Regex(marks), "isolated")])
    num_pieces = vocab_size - len(style.first) - len(style.last)
    pieces = train_unigram(texts, num_pieces, normalizer, pre_tokenizer)
    scored = [(token, 0.0) for token in style.first] + pieces + [(token, 0.0) for token in style.last]
    backend = Tokenizer(models.Unigram(scored, unk_id=style.first.index(style.roles["unk_token"])))
    backend.normalizer = normalizer
    backend.pre_tokenizer = pre_tokenizer
    backend.decoder = decoders.Metaspace(replacement=SPACE_MARK, prepend_scheme="always")
    return _stock(backend, style)


def train_unigram(
    texts: Callable[[], Iterable[str]], num_pieces: int, normalizer: Any, pre_tokenizer: Any
) -> list[tuple[str, float]]:
    """Pieces and their log probabilities, best first.

    The same texts give the same list: the characters that pruning left over get their scores in the order of the
    alphabet, and scores are rounded to 6 decimals, since the trainer's sums differ in the last bits from run to run.
    What is left to chance is a tie, to the last bit, between two pieces at the edge of what is pruned.

    Raises:
        UserError: the texts hold no character.
    """
    from tokenizers import Tokenizer, models, trainers

    counts: Counter[str] = Counter()
    for text in texts():
        counts.update(normalizer.normalize_str(text))
    counts.pop(" ", None)
    alphabet = {SPACE_MARK, *_most_frequent(counts, min(_LARGEST_ALPHABET, max(1, num_pieces // 2)))}
    num_left_out = len(set(counts) - alphabet)  # the trainer keeps every character it sees
    tokenizer = Tokenizer(models.Unigram())
    tokenizer.normalizer = normalizer
    tokenizer.pre_tokenizer = pre_tokenizer
    trainer = trainers.UnigramTrainer(
        vocab_size=max(num_pieces, len(alphabet)) + num_left_out, initial_alphabet=sorted(alphabet), show_progress=False
    )
    tokenizer.train_from_iterator(texts(), trainer)
    trained = [(piece, float(score)) for piece, score in json.loads(tokenizer.to_str())["model"]["vocab"]]
    return [item for item in _in_fixed_order(trained) if len(item[0]) > 1 or item[0] in alphabet]


def _in_fixed_order(trained: Sequence[tuple[str, float]]) -> list[tuple[str, float]]:
    """Pieces by rounded score; the left-over characters, equal steps upwards from the lowest score, by alphabet."""
    lowest = min(score for _, score in trained)
    steps = {piece: (score - lowest) / _LEFT_OVER_STEP for piece, score in trained if len(piece) == 1}
    on_steps = {piece: round(step) for piece, step in steps.items() if abs(step - round(step)) < _STEP_TOLERANCE}
    taken = set(on_steps.values())
    num_steps = next(step for step in range(len(trained) + 1) if step not in taken)
    left_over = sorted(piece for piece, step in on_steps.items() if step < num_steps)
    scores = dict(trained)
    scores |= zip(left_over, sorted((scores[piece] for piece in left_over), reverse=True), strict=True)
    rounded = [(piece, round(score, _SCORE_DIGITS)) for piece, score in scores.items()]
    return sorted(rounded, key=lambda item: (-item[1], item[0]))


def character_tokenizer(texts: Callable[[], Iterable[str]], vocab_size: int, min_count: int, style: Style) -> Any:
    """One id a character; characters seen less than ``min_count`` times are unknown.

    Where the texts have white space, words are what stands between it; without any (DNA, protein) every letter is a
    word of its own, so that span masking has something to choose from.

    Raises:
        UserError: no character was seen often enough.
    """
    from tokenizers import Regex, Tokenizer, decoders, models, pre_tokenizers

    counts: Counter[str] = Counter()
    for text in texts():
        counts.update(text)
    seen = Counter({character: count for character, count in counts.items() if count >= min_count})
    characters = _most_frequent(seen, vocab_size - len(style.first) - len(style.last))
    vocabulary = _numbered(characters, style)
    # BPE without merges is a tokenizer of characters, and unlike a word-level one it needs no pre-tokenizer.
    backend = Tokenizer(models.BPE(vocab=vocabulary, merges=[], unk_token=style.roles["unk_token"], fuse_unk=False))
    if not any(character.isspace() for character in counts):
        backend.pre_tokenizer = pre_tokenizers.Split(Regex(r"[\s\S]"), "isolated")
    backend.decoder = decoders.Fuse()
    return _stock(backend, style)


def kmer_tokenizer(texts: Callable[[], Iterable[str]], config: TokenizerConfig, style: Style) -> Any:
    """One id for ``config.kmer`` letters.

    Without overlap the tokenizer takes the sequence itself. Overlapping k-mers (Ji et al. 2021, DNABERT) are written
    out with a space between, ``ACG CGT GTA`` for ``ACGTA``: no stock tokenizer gives overlapping tokens, so that is
    what it takes, as DNABERT's does; :func:`overlapping_kmers` writes it.

    Raises:
        UserError: the vocabulary is that of the texts, and none has a k-mer often enough.
    """
    from tokenizers import Regex, Tokenizer, models, pre_tokenizers

    k = config.kmer
    if config.kmer_letters:
        kmers = ["".join(letters) for letters in product(config.kmer_letters, repeat=k)]
    else:
        stride = 1 if config.kmer_overlap else k
        counts: Counter[str] = Counter()
        for text in texts():
            counts.update(text[begin : begin + k] for begin in range(0, len(text) - k + 1, stride))
        seen = Counter({kmer: count for kmer, count in counts.items() if count >= config.min_count})
        kmers = _most_frequent(seen, config.vocab_size - len(style.first) - len(style.last))
    backend = Tokenizer(models.WordLevel(_numbered(kmers, style), unk_token=style.roles["unk_token"]))
    if config.kmer_overlap:
        backend.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
        return _stock(backend, style, overlapping_kmer=k)
    # What does not match, the end of a sequence, is removed.
    backend.pre_tokenizer = pre_tokenizers.Split(Regex(rf"\S{{{k}}}"), "removed", invert=True)
    return _stock(backend, style)


def overlapping_kmers(text: str, k: int) -> str:
    """``ACGTA`` -> ``ACG CGT GTA`` for ``k`` 3; empty if the text is shorter."""
    return " ".join(map("".join, zip(*(text[begin:] for begin in range(k)), strict=False)))


def integer_tokenizer(num_integers: int, style: Style) -> Any:
    """The ids of ``"0"`` to ``str(num_integers - 1)``, in order behind the first special tokens; takes ``17 5 99``."""
    from tokenizers import Tokenizer, models, pre_tokenizers

    vocabulary = _numbered(map(str, range(num_integers)), style)
    backend = Tokenizer(models.WordLevel(vocabulary, unk_token=style.roles["unk_token"]))
    backend.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    return _stock(backend, style)


def _most_frequent(counts: Counter[str], size: int) -> list[str]:
    """The most frequent ones, at most ``size``, in the order of the alphabet; ties go to the first in it."""
    if not counts:
        raise UserError("The documents hold no characters to train a tokenizer on (or all are below min_count).")
    return sorted(sorted(counts, key=lambda character: (-counts[character], character))[: max(1, size)])


def _numbered(symbols: Iterable[str], style: Style) -> dict[str, int]:
    return {symbol: number for number, symbol in enumerate([*style.first, *symbols, *style.last])}


def _stock(backend: Any, style: Style, **remembered: Any) -> Any:
    """The Hugging Face tokenizer; ``remembered`` goes into its ``tokenizer_config.json``."""
    from tokenizers import processors
    from transformers import AddedToken, PreTrainedTokenizerFast

    if style.single:
        framing = sorted(set(style.roles.values()))
        backend.post_processor = processors.TemplateProcessing(
            single=style.single,
            pair=style.pair,
            special_tokens=[(token, backend.token_to_id(token)) for token in framing],
        )
    marks: dict[str, Any] = {
        role: AddedToken(token, special=True, normalized=False) for role, token in style.roles.items()
    }
    names = ["input_ids", "token_type_ids", "attention_mask"] if style.single.startswith("[CLS]") else None
    remembered |= {"model_input_names": names or ["input_ids", "attention_mask"]}
    return PreTrainedTokenizerFast(tokenizer_object=backend, clean_up_tokenization_spaces=False, **marks, **remembered)
