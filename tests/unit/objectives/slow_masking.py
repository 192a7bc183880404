"""Masking one row, token by token, with Python's integers: the truth that the fast code is held against."""

from __future__ import annotations

from collections.abc import Iterator
from itertools import islice

from pipeline.base.keyed import key, mix
from pipeline.config.run import ObjectiveConfig
from tests.unit.objectives.hand_made_rows import ALL_SPECIAL_IDS, VOCAB_SIZE

ORDINARY_IDS = [token for token in range(VOCAB_SIZE) if token not in ALL_SPECIAL_IDS]
MASK_ID = 4
TOKEN_ORDER, WORD_ORDER, SPAN_ORDER, SPAN_LENGTHS, FATES, RANDOM_IDS = (
    int.from_bytes(name, "big") for name in (b"MASK", b"WORD", b"SPAN", b"LENG", b"FATE", b"PICK")
)


def slow_hash(base_key: int, index: int) -> int:
    return mix(base_key + index * 0x9E3779B97F4A7C15)


def row_key(seed: int, stream: int, row_number: int) -> int:
    return slow_hash(key(seed, stream), row_number)


def maskable_places(tokens: list[int]) -> list[int]:
    return [place for place, token in enumerate(tokens) if token not in ALL_SPECIAL_IDS]


def words_of_row(tokens: list[int], word_starts: list[bool]) -> list[list[int]]:
    """Places of every word."""
    words: list[list[int]] = []
    for place in maskable_places(tokens):
        continues = words and words[-1][-1] == place - 1 and not word_starts[place]
        if continues:
            words[-1].append(place)
        else:
            words.append([place])
    return words


def visits(begins: list[int], width: int, base_key: int) -> Iterator[tuple[int, int]]:
    """Places of ``begins`` in the order in which darts hit them first, and the dart's 16 bits of fate, for ever."""
    missing = set(begins)
    number = 0
    while missing:
        dart = (slow_hash(base_key, number // 2) >> (32 * (number % 2))) % 2**32
        place = dart % width
        if place in missing:
            missing.remove(place)
            yield place, dart >> 16
        number += 1


def width_of(tokens: list[int]) -> int:
    return 2 ** (len(tokens) - 1).bit_length()


def place_hash(seed: int, stream: int, row_number: int, place: int) -> int:
    return slow_hash(key(seed, stream), row_number * 2**16 + place)


def token_fates(tokens: list[int], count: int, seed: int, row_number: int) -> dict[int, int]:
    """Chosen places and 16 bits that decide about each."""
    order = visits(maskable_places(tokens), width_of(tokens), row_key(seed, TOKEN_ORDER, row_number))
    return dict(islice(order, count))


def word_fates(tokens: list[int], word_starts: list[bool], count: int, seed: int, row_number: int) -> dict[int, int]:
    """As :func:`token_fates`: words in random order, each that fits in what is left."""
    words = {word[0]: word for word in words_of_row(tokens, word_starts)}
    chosen: dict[int, int] = {}
    for first, _ in visits(list(words), width_of(tokens), row_key(seed, WORD_ORDER, row_number)):
        if len(chosen) + len(words[first]) <= count:
            chosen.update({place: place_hash(seed, FATES, row_number, place) >> 48 for place in words[first]})
    return chosen


def span_length(uniform: float, geometric_p: float, max_words: int) -> int:
    """Inverse of the distribution function of p * (1 - p)**(n - 1), n = 1 .. max_words."""
    total = sum(geometric_p * (1 - geometric_p) ** (words - 1) for words in range(1, max_words + 1))
    below = 0.0
    for words in range(1, max_words):
        below += geometric_p * (1 - geometric_p) ** (words - 1) / total
        if uniform < below:
            return words
    return max_words


def spans_of_row(
    tokens: list[int], word_starts: list[bool], seed: int, row_number: int, config: ObjectiveConfig
) -> list[list[int]]:
    """Places of every span: each run of words tiled from its first word on."""
    lengths = row_key(seed, SPAN_LENGTHS, row_number)
    runs: list[list[list[int]]] = []
    for word in words_of_row(tokens, word_starts):
        if runs and runs[-1][-1][-1] == word[0] - 1:
            runs[-1].append(word)
        else:
            runs.append([word])
    spans = []
    for run in runs:
        first = 0
        for place in (word[0] for word in run):
            draw = (slow_hash(lengths, place // 4) >> (16 * (place % 4))) % 2**16
            num_words = span_length(draw / 2**16, config.span_geometric_p, config.span_max_words)
            if first < len(run):
                spans.append([place for word in run[first : first + num_words] for place in word])
            first += num_words
    return spans


def span_fates(
    tokens: list[int], word_starts: list[bool], count: int, seed: int, row_number: int, config: ObjectiveConfig
) -> dict[int, int]:
    """As :func:`token_fates`: spans in random order until the count is met."""
    spans = {span[0]: span for span in spans_of_row(tokens, word_starts, seed, row_number, config)}
    chosen: dict[int, int] = {}
    for first, fate in visits(list(spans), width_of(tokens), row_key(seed, SPAN_ORDER, row_number)):
        chosen.update(dict.fromkeys(spans[first][: count - len(chosen)], fate))
    return chosen


def slow_corrupt(
    tokens: list[int], word_starts: list[bool], seed: int, row_number: int, config: ObjectiveConfig
) -> tuple[list[int], dict[int, int]]:
    """One row: corrupted ids, and labels by place."""
    count = int(config.mask_rate * len(maskable_places(tokens)) + 0.5)
    if config.masking == "token":
        fates = token_fates(tokens, count, seed, row_number)
    elif config.masking == "whole_word":
        fates = word_fates(tokens, word_starts, count, seed, row_number)
    else:
        fates = span_fates(tokens, word_starts, count, seed, row_number, config)
    corrupted = list(tokens)
    for place, fate in fates.items():
        if fate / 2**16 < config.mask_token_share:
            corrupted[place] = MASK_ID
        elif fate / 2**16 < config.mask_token_share + config.random_token_share:
            draw = place_hash(seed, RANDOM_IDS, row_number, place) >> 32
            corrupted[place] = ORDINARY_IDS[draw * len(ORDINARY_IDS) >> 32]
    return corrupted, {place: tokens[place] for place in fates}
