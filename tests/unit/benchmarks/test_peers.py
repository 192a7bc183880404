"""Every peer that is installed delivers every row once, and what checks that can fail."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from benchmarks.batches import VOCABULARY, _check_masked, _check_same_tokens, peer_classes
from benchmarks.corpus import rows_digest
from benchmarks.peers.measure import all_rows, seconds_a_batch
from benchmarks.peers.peer import (
    BATCH_ROWS,
    SEQUENCE_LENGTH,
    ResumablePeer,
    documented_collate,
    make_collator,
    raw_batch,
    tuned_collate,
)

NAMES = ("WebDatasetRows", "WebDatasetDocuments", "DatasetsMap", "DatasetsIterable", "LitdataTokens")
CLASSES, MISSING = peer_classes()


@pytest.fixture(scope="module")
def rows(tmp_path_factory) -> Path:
    """Four batches of rows of two segments, the last tokens padded."""
    random = np.random.default_rng(0)
    rows = random.integers(1000, VOCABULARY, (4 * BATCH_ROWS, SEQUENCE_LENGTH)).astype(np.uint16)
    rows[:, [0, 200]] = 101
    rows[:, [199, 500]] = 102
    rows[:, 501:] = 0
    path = tmp_path_factory.mktemp("rows") / "rows.npy"
    np.save(path, rows)
    return path


@pytest.fixture(scope="module")
def collator():
    return make_collator(None, VOCABULARY)


@pytest.mark.parametrize("name", NAMES)
def test_a_peer_delivers_every_row_once(name: str, rows: Path, tmp_path: Path) -> None:
    if name not in CLASSES:
        pytest.skip(f"{name} is not installed here ({'; '.join(MISSING.values())})")
    peer = CLASSES[name](rows, tmp_path / name)
    found, given = all_rows(peer), np.load(rows)
    assert found.dtype == np.uint16
    if name == "WebDatasetDocuments":
        _check_same_tokens(found, given)
    else:
        assert rows_digest(found) == rows_digest(given)
        assert not np.array_equal(found, given), "nothing was shuffled"
    assert seconds_a_batch(peer.batches(raw_batch), 1) > 0


@pytest.mark.parametrize("name", ["DatasetsIterable", "LitdataTokens"])
def test_a_peer_that_resumes_goes_on(name: str, rows: Path, tmp_path: Path) -> None:
    if name not in CLASSES:
        pytest.skip(f"{name} is not installed here ({'; '.join(MISSING.values())})")
    peer = CLASSES[name](rows, tmp_path / name)
    assert isinstance(peer, ResumablePeer)
    resumed = next(peer.resume(peer.state_after(2), raw_batch))
    assert resumed["input_ids"].shape == (BATCH_ROWS, SEQUENCE_LENGTH)


@pytest.mark.parametrize("make", [documented_collate, tuned_collate])
def test_the_collator_masks_15_percent_and_keeps_the_originals(make, rows: Path, collator) -> None:
    batch = np.load(rows)[:BATCH_ROWS]
    masked = make(collator)(list(batch))
    _check_masked(masked, batch)
    masked["labels"][0, 5] = masked["labels"].max() + 1
    with pytest.raises(AssertionError):
        _check_masked(masked, batch)


def test_a_lost_repeated_or_changed_row_is_found(rows: Path) -> None:
    given = np.load(rows)
    assert rows_digest(given[::-1]) == rows_digest(given)
    assert rows_digest(given[1:]) != rows_digest(given)
    assert rows_digest(np.concatenate([given[1:], given[1:2]])) != rows_digest(given)
    changed = given.copy()
    changed[7, 9] += 1
    assert rows_digest(changed) != rows_digest(given)
    with pytest.raises(AssertionError):
        _check_same_tokens(changed, given)
    with pytest.raises(AssertionError):
        _check_same_tokens(given[: 2 * BATCH_ROWS], given)
