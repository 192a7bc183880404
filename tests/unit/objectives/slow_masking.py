"""Masking one row, token by token, with Python's integers: the truth that the fast code is held against."""

from __future__ import annotations

from pipeline.base.keyed import key, mix
from pipeline.config.run import ObjectiveConfig
from tests.unit.objectives.hand_made_rows import ALL_SPECIAL_IDS, VOCAB_SIZE

ORDINARY_IDS = [token for token in range(VOCAB_SIZE) if token not in ALL_SPECIAL_IDS]
MASK_ID = 4
TOKEN_DARTS, WORD_ORDER, SPAN_ORDER, SPAN_LENGTHS, FATES = (
    int.from_bytes(name, "big") for name in (b"MASK", b"WORD", b"SPAN", b"LENG", b"FATE")
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


def token_draws(tokens: list[int], count: int, seed: int, row_number: int) -> dict[int, tuple[int, int]]:
    """Chosen places and what decides about each: (fate, pick), 64-bit draws."""
    darts = row_key(seed, TOKEN_DARTS, row_number)
    places = set(maskable_places(tokens))
    bits = (len(tokens) - 1).bit_length()
    chosen: dict[int, tuple[int, int]] = {}
    number = 0
    while len(chosen) < count:
        dart = slow_hash(darts, number)
        place = dart % 2**bits
        if place in places and place not in chosen:
            chosen[place] = dart, dart
        number += 1
    return chosen


def word_draws(
    tokens: list[int], word_starts: list[bool], count: int, seed: int, row_number: int
) -> dict[int, tuple[int, int]]:
    """As :func:`token_draws`: words in keyed order, each that fits in what is left."""
    order = row_key(seed, WORD_ORDER, row_number)
    fates = row_key(seed, FATES, row_number)
    words = words_of_row(tokens, word_starts)
    chosen: dict[int, tuple[int, int]] = {}
    for word in sorted(words, key=lambda word: (slow_hash(order, word[0]) >> 32, word[0])):
        if len(chosen) + len(word) <= count:
            chosen.update({place: (slow_hash(fates, place),) * 2 for place in word})  # type: ignore[misc]  # a pair
    return chosen


def span_length(draw: int, geometric_p: float, max_words: int) -> int:
    """Inverse of the distribution function of p * (1 - p)**(n - 1), n = 1 .. max_words, at 32 bits of the draw."""
    uniform = (draw >> 32) / 2**32
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
        for drawn_at in run:
            num_words = span_length(slow_hash(lengths, drawn_at[0]), config.span_geometric_p, config.span_max_words)
            if first < len(run):
                spans.append([place for word in run[first : first + num_words] for place in word])
            first += num_words
    return spans


def span_draws(
    tokens: list[int], word_starts: list[bool], count: int, seed: int, row_number: int, config: ObjectiveConfig
) -> dict[int, tuple[int, int]]:
    """As :func:`token_draws`: spans in keyed order until the count is met."""
    order = row_key(seed, SPAN_ORDER, row_number)
    fates = row_key(seed, FATES, row_number)
    spans = spans_of_row(tokens, word_starts, seed, row_number, config)
    chosen: dict[int, tuple[int, int]] = {}
    for span in sorted(spans, key=lambda span: (slow_hash(order, span[0]) >> 32, span[0])):
        for place in span[: count - len(chosen)]:
            chosen[place] = slow_hash(fates, span[0]), slow_hash(fates, place)
    return chosen


def slow_corrupt(
    tokens: list[int], word_starts: list[bool], seed: int, row_number: int, config: ObjectiveConfig
) -> tuple[list[int], dict[int, int]]:
    """One row: corrupted ids, and labels by place."""
    count = int(config.mask_rate * len(maskable_places(tokens)) + 0.5)
    if config.masking == "token":
        draws = token_draws(tokens, count, seed, row_number)
    elif config.masking == "whole_word":
        draws = word_draws(tokens, word_starts, count, seed, row_number)
    else:
        draws = span_draws(tokens, word_starts, count, seed, row_number, config)
    corrupted = list(tokens)
    for place, (fate_draw, pick_draw) in draws.items():
        fate = (fate_draw >> 32) / 2**32
        if fate < config.mask_token_share:
            corrupted[place] = MASK_ID
        elif fate < config.mask_token_share + config.random_token_share:
            corrupted[place] = ORDINARY_IDS[((mix(pick_draw) >> 32) * len(ORDINARY_IDS)) >> 32]
    return corrupted, {place: tokens[place] for place in draws}
