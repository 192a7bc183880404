"""Denoising and causal labels on a million tokens, against what they promise. Seeds are fixed: nothing here can flake.

Letters: N segments, K tokens of text in each.
"""

from __future__ import annotations

import math
from dataclasses import replace
from functools import cache
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

import tests.corpora
from pipeline.base.keyed import hashes, key
from pipeline.config.run import ObjectiveConfig
from pipeline.data.row_format import row_format
from pipeline.data.stream import open_stream
from pipeline.objectives.noise import poisson_lengths
from pipeline.objectives.registry import make_objective
from tests.corpora import NUM_SPECIAL, Document, write_corpus
from tests.unit.objectives.hand_made_rows import ALL_SPECIAL_IDS, SPECIAL_IDS, bert_format, make_rows
from tests.unit.objectives.test_masking_statistics import assert_chi_square, assert_near

MASK, FIRST_ID = SPECIAL_IDS["mask"], 200
"""The token at place p of a text is ``FIRST_ID + p``, so that every token can be told."""
VOCABULARY = SimpleNamespace(vocab_size=1000, special_ids=SPECIAL_IDS, all_special_ids=ALL_SPECIAL_IDS)
SILENT = ObjectiveConfig(name="denoise", infilling_rate=0.0, permute_sentences=0.0)
K, PER_ROW, NUM_ROWS = 62, 8, 2048
N = NUM_ROWS * PER_ROW
SENTENCES = (0, 9, 24, 40, K)
"""Where sentences begin, and the end."""


@cache
def noisy(config: ObjectiveConfig, size: int = K, per_row: int = PER_ROW, num_rows: int = NUM_ROWS) -> NDArray[Any]:
    """What the encoder reads of texts of ``size`` tokens, without the two special tokens around them, (N, size).

    Behind the text there may be padding, id 0.
    """
    slots = per_row * (size + 2)
    form = bert_format(slots)
    segment = np.concatenate([form.begin_ids, FIRST_ID + np.arange(size), form.end_ids])
    starts = np.zeros(size + 2, np.bool_)
    starts[[1 + start for start in SENTENCES[:-1]]] = size == K
    rows = make_rows([[size + 2] * per_row] * num_rows, form, first_row=10**6)
    tiled = np.tile(segment, (num_rows, per_row))
    rows = replace(rows, tokens=tiled, sentence_starts=np.tile(starts, (num_rows, per_row)))
    batches = make_objective(config, VOCABULARY, form, 11, packing="best_fit").prepare(rows, 1)
    found = batches[0].input_ids.numpy().reshape(-1, size + 2)
    ends = np.where(found[:, 1:] == form.end_ids[0], 0, found[:, 1:])
    assert (found[:, 0] == form.begin_ids[0]).all()
    assert ((found == form.end_ids[0]).sum(1) == 1).all()
    return ends[:, :-1]


def only(**rates: float) -> ObjectiveConfig:
    return replace(SILENT, **rates)


def assert_every_place_at_the_rate(hit: NDArray[np.bool_], rate: float) -> None:
    """Of (N, K) choices: their number, each place's, the numbers of segments, and neighbours one and two apart."""
    assert hit.size > 10**6 * 0.95
    assert_near(hit.sum(), rate * hit.size, hit.size * rate * (1 - rate))
    places = hit.sum(0)
    variance = len(hit) * rate * (1 - rate)
    statistic = ((places - len(hit) * rate) ** 2 / variance).sum()
    assert abs(statistic - hit.shape[1]) < 5 * math.sqrt(2 * hit.shape[1])
    counts = hit.sum(1)
    shares = np.array([math.comb(K, n) * rate**n * (1 - rate) ** (K - n) for n in range(K + 1)])
    assert_shares(counts, shares)
    for apart in (1, 2, K // 2):
        pairs = np.bincount((2 * hit[:, apart:] + hit[:, :-apart]).ravel(), minlength=4)
        expected = np.outer([1 - rate, rate], [1 - rate, rate]).ravel() * pairs.sum()
        assert_chi_square(pairs, expected, 3)
    following = np.bincount(2 * hit[1:, 0] + hit[:-1, 0], minlength=4)  # of the next segment
    assert_chi_square(following, np.outer([1 - rate, rate], [1 - rate, rate]).ravel() * following.sum(), 3)


def assert_shares(values: NDArray[np.integer], shares: NDArray[np.floating]) -> None:
    """Chi-square of values against the share of each; those expected less than 10 times are one, at the end."""
    expected = shares * len(values)
    observed = np.bincount(values, minlength=len(shares)).astype(np.float64)
    common = expected >= 10
    rest = (
        observed[: len(common)][~common].sum() + observed[len(common) :].sum(),
        len(values) - expected[common].sum(),
    )
    joined = np.append(observed[: len(common)][common], rest[0]), np.append(expected[common], rest[1])
    if rest[1] < 10:
        assert rest[0] < 40
        joined = joined[0][:-1], joined[1][:-1]
    assert_chi_square(*joined, len(joined[0]) - 1)


@pytest.mark.parametrize("rate", [0.1, 0.5])
def test_deletion(rate: float) -> None:
    found = noisy(only(deletion_rate=rate))
    there = np.zeros((N, K), np.bool_)
    segment, at = np.nonzero(found)
    there[segment, found[segment, at] - FIRST_ID] = True
    assert (found > 0).sum() == there.sum()  # none is there twice,
    assert all((np.diff(one[one > 0]) > 0).all() for one in found)  # all in their order
    assert_every_place_at_the_rate(~there, rate)


@pytest.mark.parametrize("rate", [0.15, 0.4])
def test_single_masks(rate: float) -> None:
    found = noisy(only(token_mask_rate=rate))
    assert ((found == MASK) | (found == FIRST_ID + np.arange(K))).all()
    assert_every_place_at_the_rate(found == MASK, rate)


def test_the_masked_span() -> None:
    found = noisy(only(span_mask_rate=0.5))
    clean = np.broadcast_to(FIRST_ID + np.arange(K), found.shape)
    marked = noisy(only(span_mask_rate=0.5, mask_token_share=1.0, random_token_share=0.0)) == MASK
    assert (marked.sum(1) == 31).all()  # round(0.5 * 62)
    first = marked.argmax(1)
    assert (np.diff(marked.astype(int), axis=1) == 1).sum() + marked[:, 0].sum() == N  # one run each
    assert_chi_square(np.bincount(first, minlength=32), N / 32, 31)
    np.testing.assert_array_equal(found[~marked], clean[~marked])
    span, was = found[marked], clean[marked]
    num_ordinary = 1000 - len(ALL_SPECIAL_IDS)
    fates = np.bincount(np.where(span == MASK, 0, np.where(span == was, 2, 1)), minlength=3)
    by_chance = 0.1 / num_ordinary  # a random token may be the old one
    assert_chi_square(fates, len(span) * np.array([0.8, 0.1 - by_chance, 0.1 + by_chance]), 2)
    assert not np.isin(span[span != MASK], ALL_SPECIAL_IDS).any()
    changed = (span != MASK) & (span != was)
    drawn = np.bincount(span[changed], minlength=1000)
    expected = (changed.sum() - np.bincount(was[changed], minlength=1000)) / (num_ordinary - 1)
    ordinary = np.setdiff1d(np.arange(1000), ALL_SPECIAL_IDS)
    assert_chi_square(drawn[ordinary], expected[ordinary], num_ordinary - 1)


@pytest.mark.parametrize("rate", [0.15, 0.3])
def test_infilling_covers_the_rate_exactly(rate: float) -> None:
    found = noisy(only(infilling_rate=rate))
    is_text = found >= FIRST_ID
    assert (is_text.sum(1) == K - int(rate * K + 0.5)).all()
    assert ((found > 0).sum(1) <= K).all()
    assert all((np.diff(one[one >= FIRST_ID]) > 0).all() for one in found)


def test_spans_begin_at_any_token() -> None:
    """Of one token each, since one is to be covered."""
    found = noisy(only(infilling_rate=1 / K))
    assert ((found == MASK).sum(1) == 1).all()
    assert_chi_square(np.bincount((found == MASK).argmax(1), minlength=K), N / K, K - 1)


def poisson(mean: float, most: int) -> NDArray[np.float64]:
    return np.cumprod([math.exp(-mean), *(mean / number for number in range(1, most))])


@pytest.mark.parametrize("mean", [0.5, 3.0, 6.0])
def test_lengths_are_poisson_as_drawn(mean: float) -> None:
    draws = hashes(key(3, 4), np.arange(10**6)) & np.uint64(0xFFFF)
    assert_shares(poisson_lengths(mean)[draws.astype(np.int64)], poisson(mean, 32))


def test_spans_have_poisson_lengths_where_they_hardly_meet() -> None:
    """One token in a hundred of long texts, so that few are cut or drawn again; insertions are spans of no token."""
    texts = noisy(only(infilling_rate=0.01), 60_000, 1, 17)
    lengths: list[int] = []
    for found in texts:
        kept = found[found > 0]
        is_mask = np.concatenate([[False], kept == MASK, [False]])
        alone = is_mask[1:-1] & ~is_mask[2:] & ~is_mask[:-2]
        at = np.flatnonzero(alone)
        at = at[(at > 0) & (at < len(kept) - 1)]
        lengths += (kept[at + 1] - kept[at - 1] - 1).tolist()
    assert len(lengths) > 3000
    assert_shares(np.array(lengths), poisson(3.0, 32))


def test_all_orders_of_sentences_are_equally_likely() -> None:
    found = noisy(only(permute_sentences=1.0))
    order = order_of_sentences(found)
    assert_chi_square(np.bincount(order, minlength=256)[np.unique(order)], N / 24, 23)
    assert len(np.unique(order)) == 24
    before, after = order[:-1], order[1:]
    assert_near((before == after).sum(), (N - 1) / 24, (N - 1) / 24 * 23 / 24)  # of the next segment


def order_of_sentences(found: NDArray[np.int64]) -> NDArray[np.int64]:
    """The order of the four sentences as a number of base 4; every sentence is whole. (N,)"""
    sentence = np.searchsorted(SENTENCES, found - FIRST_ID, side="right") - 1  # N K
    begins = np.diff(sentence, axis=1, prepend=-1) != 0
    assert (begins.sum(1) == 4).all()
    places = np.sort(found, axis=1)
    assert (places == FIRST_ID + np.arange(K)).all()
    assert ((np.diff(found, axis=1) == 1) | begins[:, 1:]).all()
    return (sentence[begins].reshape(-1, 4) * 4 ** np.arange(4)).sum(1)


def test_rotation_begins_at_any_token() -> None:
    found = noisy(only(rotation=1.0))
    first = found[:, 0] - FIRST_ID
    assert (found == FIRST_ID + (first[:, None] + np.arange(K)) % K).all()
    assert_chi_square(np.bincount(first, minlength=K), N / K, K - 1)


def test_whether_a_segment_is_permuted_or_rotated_depends_on_no_other() -> None:
    permuted_ids, rotated_ids = noisy(only(permute_sentences=0.3)), noisy(only(rotation=0.4))
    straight = FIRST_ID + np.arange(K)
    permuted, rotated = ((found != straight).any(1) for found in (permuted_ids, rotated_ids))
    share_permuted, share_rotated = 0.3 * 23 / 24, 0.4 * (K - 1) / K  # one draw in 24 and in K changes nothing
    for chosen, share in ((permuted, share_permuted), (rotated, share_rotated)):
        in_rows = chosen.reshape(NUM_ROWS, PER_ROW).sum(1)
        assert_shares(
            in_rows, np.array([math.comb(8, n) * share**n * (1 - share) ** (8 - n) for n in range(PER_ROW + 1)])
        )
        for apart in (1, PER_ROW):  # the next segment, and that of the same place in the next row
            pairs = np.bincount(2 * chosen[apart:] + chosen[:-apart], minlength=4)
            assert_chi_square(pairs, np.outer([1 - share, share], [1 - share, share]).ravel() * pairs.sum(), 3)
    both = np.bincount(2 * permuted + rotated, minlength=4)
    shares = np.outer([1 - share_permuted, share_permuted], [1 - share_rotated, share_rotated])
    assert_chi_square(both, shares.ravel() * N, 3)
    turn = rotated_ids[:, 0] - FIRST_ID
    turned = np.take_along_axis(permuted_ids, (turn[:, None] + np.arange(K)) % K, 1)
    np.testing.assert_array_equal(noisy(only(permute_sentences=0.3, rotation=0.4)), turned)


EVERYTHING = ObjectiveConfig(
    name="denoise", deletion_rate=0.1, token_mask_rate=0.1, span_mask_rate=0.2, rotation=0.5, permute_sentences=0.7
)


@pytest.mark.parametrize(
    "config", [EVERYTHING, replace(SILENT, span_mask_rate=0.5, predict="masked")], ids=["all", "masked"]
)
def test_the_targets_are_the_input(config: ObjectiveConfig) -> None:
    generator = np.random.default_rng(0)
    form = bert_format(512)
    lengths = [np.diff(np.sort(generator.choice(509, 5, replace=False))).clip(2).tolist() for _ in range(3200)]
    rows = make_rows(lengths, form)
    starts = generator.random(rows.tokens.shape) < 0.1
    rows = replace(rows, sentence_starts=starts)
    (batch,) = make_objective(config, VOCABULARY, form, 11, packing="best_fit").prepare(rows, 1)
    real, first = np.zeros(rows.tokens.shape, np.bool_), np.zeros(rows.tokens.shape, np.bool_)
    for row, start, length in zip(rows.segment_row, rows.segment_start, rows.segment_length, strict=True):
        real[row, start : start + length] = True
        first[row, start] = True
    labels = np.full(rows.tokens.size, -100)
    labels[batch.prediction_positions] = batch.labels
    labels = labels.reshape(rows.tokens.shape)
    predicted = labels != -100
    np.testing.assert_array_equal(labels[predicted], rows.tokens[predicted])
    assert batch.decoder_input_ids is not None
    inputs, shifted = batch.decoder_input_ids.numpy(), np.roll(rows.tokens, 1, axis=1)
    assert (inputs[first] == SPECIAL_IDS["eos"]).all()
    assert (inputs[~real] == 0).all()
    if config.predict == "all":
        assert predicted.sum() == real.sum() > 10**6
        np.testing.assert_array_equal(predicted, real)
        np.testing.assert_array_equal(inputs[real & ~first], shifted[real & ~first])
    else:
        read = np.roll(predicted, 1, axis=1) & ~first
        np.testing.assert_array_equal(inputs[read], shifted[read])
        assert (inputs[real & ~first & ~read] == MASK).all()
    assert (batch.input_ids.numpy()[real] != rows.tokens[real]).mean() > 0.3


@pytest.fixture(scope="module")
def numbered(tmp_path_factory: pytest.TempPathFactory) -> tests.corpora.Corpus:
    """Documents of one id each, another one for every document."""
    lengths = tests.corpora.random_lengths(5, 3, 1100, mean=190.0)
    first_of: dict[str, int] = {}

    def one_id_each(_: Any, lengths: list[int], *rest: Any) -> list[Document]:
        name = rest[2]
        first = first_of.setdefault(name, NUM_SPECIAL + 2000 * len(first_of))
        return [Document(f"{name}/{n}", np.full(size, first + n), None) for n, size in enumerate(lengths)]

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(tests.corpora, "make_documents", one_id_each)
        return write_corpus(tmp_path_factory.mktemp("numbered") / "c", lengths, vocab_size=20_000, sentences=False)


@pytest.mark.parametrize("packing", ["best_fit", "concatenate", "one_document"])
def test_causal_labels_never_cross_documents(numbered: tests.corpora.Corpus, packing: Any) -> None:
    stream = open_stream(
        numbered.files, kind="gpt", sequence_length=512, global_batch_size=256, packing=packing, seed=1
    )
    form = row_format(numbered.manifest, "gpt", 512)
    apart, across = (
        make_objective(
            ObjectiveConfig(name="clm"), numbered.manifest, form, 0, packing=packing, cross_document_attention=cross
        )
        for cross in (False, True)
    )
    end = form.end_ids[0]
    num_tokens = num_labels = num_crossing = 0
    for step in range(40):
        rows = stream.rows(step)
        tokens = rows.tokens.astype(np.int64)
        following = np.concatenate([tokens[:, 1:], np.full((len(tokens), 1), -1)], 1)
        _, labels = apart.labels_of(rows)
        _, crossing = across.labels_of(rows)
        for found in (labels, crossing):
            np.testing.assert_array_equal(found[found != -100], following[found != -100])
        predicts = labels != -100
        # A document's tokens are of one id: the next one is the same, or its end.
        assert ((labels == tokens) | (labels == end))[predicts].all()
        assert not (tokens == end)[predicts].any()
        real = np.zeros(tokens.shape, np.bool_)
        for row, start, length in zip(rows.segment_row, rows.segment_start, rows.segment_length, strict=True):
            real[row, start : start + length] = True
        inside = real & ((following == tokens) | (following == end)) & (tokens != end)
        inside[:, :-1] &= real[:, 1:]
        np.testing.assert_array_equal(predicts, inside)  # nor is one left out
        np.testing.assert_array_equal((crossing != -100)[:, :-1], real[:, :-1] & real[:, 1:])
        num_tokens, num_labels = num_tokens + int(real.sum()), num_labels + int(predicts.sum())
        num_crossing += int((crossing != -100).sum())
        if num_tokens > 10**6:
            break
    assert num_tokens > 10**6
    assert (num_crossing > num_labels) == (packing != "one_document")
