"""Noise of a text that is to be restored: rates, spans, order, room, and that numbers depend on names alone."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from pipeline.objectives.noise import Noise, add_noise, make_noise, poisson_lengths

MASK = 4
BEGIN, END = 2, 3
NONE = {"permute": 0.0, "delete": 0.0, "mask": 0.0, "infill": 0.0, "mean": 3.0, "rotate": 0.0}


def noise(seed: int = 0, **rates: float) -> Noise:
    return make_noise(seed, MASK, **{**NONE, **rates})


def noisy(
    text: NDArray[Any], settings: Noise, name: int = 0, sentences: NDArray[np.bool_] | None = None
) -> NDArray[np.int64]:
    """The text of a segment with noise; its special tokens are checked and taken off."""
    segment = np.concatenate([[BEGIN], text, [END]]).astype(np.uint16)
    starts = np.zeros(0, np.bool_) if sentences is None else np.concatenate([[False], sentences, [False]])
    out = np.full(len(segment), -1, np.int64)
    size = add_noise(segment, starts, 1, 1, name << 16, settings, out)
    assert size <= len(segment)
    assert (out[0], out[size - 1]) == (BEGIN, END)
    return out[1 : size - 1]


def texts(count: int, length: int = 500) -> list[NDArray[np.int64]]:
    """All ids different, so that every token can be told."""
    return [np.arange(10, 10 + length) for _ in range(count)]


def test_without_noise_nothing_changes() -> None:
    for length in (0, 1, 2, 50):
        text = np.arange(10, 10 + length)
        np.testing.assert_array_equal(noisy(text, noise()), text)


def test_the_same_name_has_the_same_noise_and_others_another() -> None:
    settings = noise(permute=1.0, delete=0.1, mask=0.1, infill=0.3, rotate=1.0)
    text = texts(1)[0]
    first, again, other = (noisy(text, settings, name) for name in (5, 5, 6))
    np.testing.assert_array_equal(first, again)
    assert first.tolist() != other.tolist()
    assert noisy(text, noise(1, infill=0.3), 5).tolist() != noisy(text, noise(0, infill=0.3), 5).tolist()


@pytest.mark.parametrize("rate", [0.1, 0.5])
def test_tokens_are_deleted_at_the_rate(rate: float) -> None:
    kept = np.concatenate([noisy(text, noise(delete=rate), name) for name, text in enumerate(texts(2000))])
    total = 2000 * 500
    assert abs(total - len(kept) - rate * total) < 4 * np.sqrt(total * rate * (1 - rate))
    counts = np.bincount(kept - 10, minlength=500)  # every place as often
    statistic = ((counts - 2000 * (1 - rate)) ** 2).sum() / (2000 * rate * (1 - rate))
    assert abs(statistic - 500) < 4 * np.sqrt(2 * 500)


def test_tokens_are_masked_at_the_rate_and_stay_in_place() -> None:
    masked = np.stack([noisy(text, noise(mask=0.15), name) for name, text in enumerate(texts(2000))])
    chosen = masked == MASK
    assert (masked[~chosen] == np.broadcast_to(np.arange(10, 510), masked.shape)[~chosen]).all()
    assert abs(chosen.mean() - 0.15) < 4 * np.sqrt(0.15 * 0.85 / chosen.size)


def test_spans_have_poisson_lengths() -> None:
    lengths = poisson_lengths(3.0)
    shares = np.bincount(lengths, minlength=12)[:12] / 2**16
    expected = np.cumprod([np.exp(-3.0), *(3.0 / k for k in range(1, 12))])
    np.testing.assert_allclose(shares, expected, atol=2e-5)


def spans_of(text: NDArray[np.int64], found: NDArray[np.int64]) -> tuple[list[int], int]:
    """Lengths of the spans behind the mask tokens as far as they can be told, and how many tokens are gone."""
    gaps, last = [], 9
    masks = 0
    for token in [*found.tolist(), 10 + len(text)]:
        if token == MASK:
            masks += 1
            continue
        if masks == 1:
            gaps.append(token - last - 1)
        masks, last = 0, token
    return gaps, len(text) - int((found != MASK).sum())


def test_infilling_covers_the_rate_by_one_mask_token_a_span() -> None:
    lengths, inserted = [], 0
    for name, text in enumerate(texts(1000)):
        found = noisy(text, noise(infill=0.3), name)
        gaps, gone = spans_of(text, found)
        assert gone == 150  # exactly round(0.3 * 500)
        assert (np.diff(found[found != MASK]) > 0).all()  # what is left keeps its order
        lengths += [gap for gap in gaps if gap]
        inserted += sum(gap == 0 for gap in gaps)
    shares = np.bincount(lengths, minlength=8)[1:8] / len(lengths)
    expected = np.cumprod([np.exp(-3.0), *(3.0 / k for k in range(1, 8))])[1:]
    expected /= expected.sum() / (1 - 0.012)
    # Long spans meet others and are drawn again more often than short ones; neighbours are not told apart.
    np.testing.assert_allclose(shares, expected, atol=0.035)
    assert 0.02 < inserted / len(lengths) < 0.08  # e^-3 of the draws are of no token


def test_a_text_never_grows() -> None:
    settings = noise(permute=1.0, infill=0.3, mean=0.3, rotate=1.0)  # nearly all draws are insertions
    for length in (0, 1, 2, 3, 10, 100):
        for name in range(50):
            noisy(np.arange(10, 10 + length), settings, name)  # checks it


def test_all_of_it_may_be_covered() -> None:
    for name in range(20):
        found = noisy(np.arange(10, 60), noise(infill=1.0), name)
        assert set(found.tolist()) == {MASK}
        assert len(found) <= 50


def test_sentences_are_permuted_whole_and_evenly() -> None:
    text = np.arange(10, 22)
    starts = np.zeros(12, np.bool_)
    starts[[3, 8]] = True  # lengths 3, 5, 4; the first begins with the text
    sentences = [[10, 11, 12], [13, 14, 15, 16, 17], [18, 19, 20, 21]]
    orders: dict[tuple[int, ...], int] = {}
    for name in range(3000):
        found = noisy(text, noise(permute=1.0), name, starts).tolist()
        order = []
        while found:
            (number,) = (number for number, one in enumerate(sentences) if found[: len(one)] == one)
            order.append(number)
            found = found[len(sentences[number]) :]
        assert sorted(order) == [0, 1, 2]
        orders[tuple(order)] = orders.get(tuple(order), 0) + 1
    assert len(orders) == 6
    assert sum((count - 500) ** 2 / 500 for count in orders.values()) < 20.5  # chi-squared, 5 df, p = 0.001


def test_some_segments_are_permuted_and_rotated() -> None:
    text, starts = np.arange(10, 50), np.zeros(40, np.bool_)
    starts[20] = True
    permuted = sum(noisy(text, noise(permute=0.25), name, starts)[0] != 10 for name in range(4000))
    assert abs(permuted / 4000 - 0.25 / 2) < 0.02  # half of the orders of two sentences are the old one
    rotated = [noisy(text, noise(rotate=0.5), name) for name in range(4000)]
    assert all(sorted(one.tolist()) == text.tolist() for one in rotated)
    first = np.array([one[0] - 10 for one in rotated])
    assert abs((first == 0).mean() - (0.5 + 0.5 / 40)) < 0.04
    counts = np.bincount(first[first > 0], minlength=40)[1:]
    assert ((counts - counts.mean()) ** 2).sum() / counts.mean() < 75  # chi-squared, 38 df, p = 0.0003
