"""Which checkpoints stay; publication; what is cleared away."""

from __future__ import annotations

from pathlib import Path

import pytest

from pipeline.checkpoints.directory import list_directories, remove_leftovers, set_aside, temporary_directory
from pipeline.checkpoints.meta import checkpoint_directory, list_checkpoints
from pipeline.checkpoints.publishing import publish, tidy
from pipeline.checkpoints.retention import Retention, prune
from tests.unit.checkpoints.checkpoint_cases import description_of, write_checkpoint

STEPS = [5, 10, 15, 20, 25, 30, 31, 32, 40, 41, 42, 43]


def planted(run_directory: Path, steps: list[int]) -> Path:
    for step in steps:
        directory = checkpoint_directory(run_directory, step)
        directory.mkdir(parents=True)
        (directory / "meta.json").touch()
    return run_directory


@pytest.mark.parametrize(
    ("retention", "kept"),
    [
        (Retention(keep_last=2, every_steps=10), [30, 40, 42, 43]),
        (Retention(keep_last=1, every_steps=5), [40, 43]),
        (Retention(keep_last=1, every_steps=1000), [43]),
        (Retention(keep_last=3, every_steps=5, keep_every_steps=15), [15, 25, 30, 40, 41, 42, 43]),
        (Retention(keep_last=1, every_steps=10, keep_every_steps=20), [20, 40, 43]),
        (Retention(keep_last=100, every_steps=10), STEPS),
    ],
)
def test_what_is_kept(retention: Retention, kept: list[int], tmp_path: Path) -> None:
    planted(tmp_path, STEPS)
    doomed = prune(tmp_path, retention, intact_step=43, dry_run=True)
    assert list_checkpoints(tmp_path) == STEPS
    assert prune(tmp_path, retention, intact_step=43) == doomed
    assert list_checkpoints(tmp_path) == kept
    assert sorted({*kept, *doomed}) == STEPS
    assert prune(tmp_path, retention, intact_step=43) == []


def test_the_last_good_one_is_kept_against_every_rule(tmp_path: Path) -> None:
    planted(tmp_path, STEPS)
    prune(tmp_path, Retention(keep_last=1, every_steps=1000), intact_step=15)
    assert list_checkpoints(tmp_path) == [15, 43]


def test_reasons_are_named() -> None:
    reasons = Retention(keep_last=1, every_steps=10, keep_every_steps=20).reasons([10, 20, 30, 31])
    assert reasons == {10: [], 20: ["for ever"], 30: ["last at intervals"], 31: ["last"]}


def test_publication_names_the_latest_and_clears_away(tmp_path: Path) -> None:
    write_checkpoint(tmp_path, 10, num_bytes=9)
    write_checkpoint(tmp_path, 20, num_bytes=9)
    checkpoints = tmp_path / "checkpoints"
    for leftover in (".step-00000015.other.tmp", ".step-00000005.deleted"):
        (checkpoints / leftover).mkdir()
    (checkpoints / "step-00000012.damaged").mkdir()
    assert tidy(tmp_path, 20, Retention(keep_last=1, every_steps=10)) == [10]
    assert sorted(path.name for path in checkpoints.iterdir()) == ["latest", "step-00000012.damaged", "step-00000020"]
    assert (checkpoints / "latest").read_text() == "step-00000020\n"


@pytest.mark.parametrize(("size", "message"), [(3, "has 3 bytes where rank 0 looks"), (None, "has not arrived where")])
def test_files_that_rank_0_does_not_see_are_not_published(size: int | None, message: str, tmp_path: Path) -> None:
    path = checkpoint_directory(tmp_path, 10)
    temporary = temporary_directory(path, "token")
    temporary.mkdir(parents=True)
    if size is not None:
        (temporary / "rank-00001.safetensors").write_bytes(b"x" * size)
    files = {"rank-00001.safetensors": {"bytes": 4, "xxh3_128": ""}}
    with pytest.raises(ValueError, match=f"rank-00001.safetensors {message}.* one directory that all nodes share"):
        publish(temporary, path, {**description_of(10), "files": files})
    assert not path.exists()


def test_a_published_checkpoint_is_never_replaced(tmp_path: Path) -> None:
    path = write_checkpoint(tmp_path, 10, num_bytes=9)
    before = (path / "rank-00000.safetensors").read_bytes()
    with pytest.raises(OSError, match="not empty"):
        write_checkpoint(tmp_path, 10, num_bytes=9)
    assert (path / "rank-00000.safetensors").read_bytes() == before
    remove_leftovers(tmp_path)
    assert list_directories(tmp_path) == [10]


def test_damaged_ones_are_set_aside_under_names_of_their_own(tmp_path: Path) -> None:
    names = []
    for _ in range(3):
        names.append(set_aside(write_checkpoint(tmp_path, 10, num_bytes=9)).name)
    assert names == ["step-00000010.damaged", "step-00000010.damaged-2", "step-00000010.damaged-3"]
    assert list_directories(tmp_path) == []
