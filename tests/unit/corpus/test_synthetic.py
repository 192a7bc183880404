"""The synthetic languages have the properties that they are made for, on 10^5 tokens and more."""

from __future__ import annotations

from collections import Counter
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from pipeline.config.synthetic import SyntheticConfig
from pipeline.config.synthetic_checks import synthetic_problems
from pipeline.corpus.synthetic import document_lengths, document_maker, split_keys, word_names

KINDS = ("random", "zipf", "paired", "shuffle", "nested")


def documents_of(**values: Any) -> list[NDArray[np.int64]]:
    config = SyntheticConfig(**{"documents": 1000, "vocab_size": 200, "length": 100, **values})
    assert synthetic_problems(config) == []
    make = document_maker(config)
    lengths = document_lengths(config, np.arange(config.documents))
    documents = [make(number, length) for number, length in enumerate(lengths.tolist())]
    assert [len(document) for document in documents] == lengths.tolist()
    assert all(document.dtype == np.int64 for document in documents)
    return documents


def deviation(counts: NDArray[np.int64], shares: NDArray[np.float64]) -> float:
    """Pearson's chi-square in standard deviations from its mean (df = cells - 1, variance 2 df)."""
    expected = counts.sum() * shares
    freedom = len(counts) - 1
    return float((((counts - expected) ** 2 / expected).sum() - freedom) / np.sqrt(2 * freedom))


def zipf_shares(vocab_size: int, exponent: float) -> NDArray[np.float64]:
    weights = np.array([1 / rank**exponent for rank in range(1, vocab_size + 1)])
    return weights / weights.sum()


@pytest.mark.parametrize(
    ("kind", "exponent", "drawn"),
    [("random", 1.0, 0.0), ("zipf", 1.0, 1.0), ("zipf", 1.5, 1.5), ("zipf", 0.0, 0.0)],
)
def test_frequencies_of_words(kind: str, exponent: float, drawn: float) -> None:
    words = np.concatenate(documents_of(kind=kind, exponent=exponent))
    counts = np.bincount(words, minlength=200)
    assert len(words) == 100_000
    assert len(counts) == 200
    assert abs(deviation(counts, zipf_shares(200, drawn))) < 5
    # The test can fail: a slightly other language is seen.
    assert deviation(counts, zipf_shares(200, drawn + 0.1)) > 20


@pytest.mark.parametrize("kind", ["random", "zipf"])
def test_neighbours_are_independent(kind: str) -> None:
    documents = documents_of(kind=kind, vocab_size=20)
    pairs = np.concatenate([20 * document[:-1] + document[1:] for document in documents])
    shares = zipf_shares(20, 0.0 if kind == "random" else 1.0)
    assert abs(deviation(np.bincount(pairs, minlength=400), np.outer(shares, shares).ravel())) < 5


@pytest.mark.parametrize("vocab_size", [50, 60, 200, 30_000])
def test_every_word_of_a_paired_document_occurs_twice(vocab_size: int) -> None:
    documents = documents_of(kind="paired", vocab_size=vocab_size)
    for document in documents:
        assert set(Counter(document.tolist()).values()) == {2}
        assert 0 <= document.min() <= document.max() < vocab_size
    counts = np.bincount(np.concatenate(documents), minlength=vocab_size) // 2
    if vocab_size == 50:
        assert (counts == 1000).all()  # all words there are, in every document
    elif vocab_size == 200:  # a sample without replacement varies less than chi-square says
        assert deviation(counts, zipf_shares(200, 0.0)) < 5


def test_the_places_of_pairs_are_random() -> None:
    documents = documents_of(kind="paired", length=10, documents=10_000)
    distances = Counter(
        int(np.diff(np.flatnonzero(document == word))[0]) for document in documents for word in document[:1]
    )
    # The twin of the first token is at any of the nine other places alike.
    assert abs(deviation(np.array([distances[step] for step in range(1, 10)]), np.full(9, 1 / 9))) < 5


@pytest.mark.parametrize(("run_length", "vocab_size"), [(16, 200), (7, 7), (1, 50), (300, 300)])
def test_runs_are_shuffled_consecutive_words(run_length: int, vocab_size: int) -> None:
    documents = documents_of(kind="shuffle", run_length=run_length, vocab_size=vocab_size)
    starts: Counter[int] = Counter()
    for document in documents:
        for begin in range(0, len(document), run_length):
            run = document[begin : begin + run_length].tolist()
            (first,) = [word for word in run if (word - 1) % vocab_size not in run] or [0]
            starts[first] += 1
            assert {(first + step) % vocab_size for step in range(len(run))} == set(run)
            assert len(set(run)) == len(run)
    if run_length < vocab_size:
        counts = np.array([starts[word] for word in range(vocab_size)])
        assert abs(deviation(counts, np.full(vocab_size, 1 / vocab_size))) < 5


def test_runs_come_in_every_order() -> None:
    documents = documents_of(kind="shuffle", run_length=4, documents=1000)
    runs = np.concatenate(documents).reshape(-1, 4)
    orders = Counter(tuple(np.argsort(run).tolist()) for run in runs if run.max() - run.min() == 3)
    assert len(orders) == 24
    assert abs(deviation(np.array(list(orders.values())), np.full(24, 1 / 24))) < 5


@pytest.mark.parametrize("max_depth", [1, 3, 16, 1000])
@pytest.mark.parametrize("open_probability", [0.0, 0.4, 0.7, 1.0])
def test_brackets_match_and_nest(max_depth: int, open_probability: float) -> None:
    config = {"kind": "nested", "max_depth": max_depth, "open_probability": open_probability}
    names = word_names(SyntheticConfig(kind="nested", vocab_size=200))
    deepest = 0
    for document in documents_of(**config):
        stack: list[str] = []
        for name in (names[word] for word in document.tolist()):
            if name.startswith("("):
                stack.append(name[1:])
                deepest = max(deepest, len(stack))
            else:
                assert name == f"){stack.pop()}"
        assert not stack
    allowed = min(max_depth, 50)
    assert deepest == {0.0: 1, 1.0: allowed}.get(open_probability, deepest)
    assert deepest <= allowed


def test_brackets_open_with_the_probability_where_they_may_choose() -> None:
    opened = Counter(
        place
        for document in documents_of(kind="nested", vocab_size=20, open_probability=0.3, documents=2000)
        for place in [int(document[1] < 10)]  # one is open, and the document is far from its end
    )
    assert abs(deviation(np.array([opened[0], opened[1]]), np.array([0.7, 0.3]))) < 5


def test_kinds_of_brackets_are_equally_frequent() -> None:
    words = np.concatenate(documents_of(kind="nested"))
    assert len(words) == 100_000
    counts = np.bincount(words, minlength=200)
    assert (counts[:100] == counts[100:]).all()
    assert abs(deviation(counts[:100], np.full(100, 0.01))) < 5


@pytest.mark.parametrize("kind", KINDS)
def test_lengths_are_uniform(kind: str) -> None:
    config = SyntheticConfig(kind=kind, documents=100_000, length=4, max_length=20)  # type: ignore[arg-type]
    lengths = document_lengths(config, np.arange(config.documents))
    allowed = np.arange(4, 21, 2 if kind in ("paired", "nested") else 1)
    counts = np.array([(lengths == length).sum() for length in allowed])
    assert counts.sum() == config.documents
    assert abs(deviation(counts, np.full(len(allowed), 1 / len(allowed)))) < 5
    fixed = replace(config, max_length=None)
    assert (document_lengths(fixed, np.arange(100)) == 4).all()


@pytest.mark.parametrize("kind", KINDS)
def test_a_document_follows_from_settings_seed_and_number(kind: str) -> None:
    few = documents_of(kind=kind, documents=20, max_length=120)
    many = documents_of(kind=kind, documents=30, max_length=120)
    assert all(np.array_equal(ours, theirs) for ours, theirs in zip(few, many, strict=False))
    other = documents_of(kind=kind, documents=20, max_length=120, seed=1)
    assert not any(np.array_equal(ours, theirs) for ours, theirs in zip(few, other, strict=True))
    assert len({document.tobytes() for document in many}) == 30


def test_more_documents_leave_the_splits_of_the_first_ones() -> None:
    few, many = (split_keys(SyntheticConfig(documents=count)) for count in (100, 1000))
    assert np.array_equal(few, many[:100])
    assert len(np.unique(many)) == 1000


@pytest.mark.parametrize("kind", KINDS)
def test_words_have_names_of_their_own(kind: str) -> None:
    names = word_names(SyntheticConfig(kind=kind, vocab_size=200))  # type: ignore[arg-type]
    assert len(set(names)) == 200
    assert not any(character.isspace() for name in names for character in name)
    assert [names[3], names[103]] == (["(3", ")3"] if kind == "nested" else ["w3", "w103"])
