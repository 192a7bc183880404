"""The loader: the same batches from a thread and from processes, errors raised where they are seen, no hang."""

from __future__ import annotations

import gc
import pickle
import subprocess
import sys
import threading
from collections.abc import Sequence
from pathlib import Path

import pytest
import torch

from pipeline.base.errors import UserError
from pipeline.data.loader import Loader, make_loader
from pipeline.data.rows import Rows
from pipeline.data.stream import RowStream, open_stream
from tests.corpora import random_lengths, write_corpus

G = 12


@pytest.fixture(scope="module")
def stream(tmp_path_factory: pytest.TempPathFactory) -> RowStream:
    corpus = write_corpus(tmp_path_factory.mktemp("data") / "corpus", random_lengths(0, 4, 25))
    return open_stream(
        corpus.directory, kind="bert", sequence_length=32, global_batch_size=G, packing="best_fit", open_shards=4
    )


def micro_batches(rows: Rows, steps: Sequence[int]) -> list[list[dict[str, torch.Tensor]]]:
    """Two of every step, alike."""
    size = len(rows.row_numbers) // len(steps) // 2
    return [
        [
            {
                "numbers": torch.from_numpy(rows.row_numbers[first : first + size].copy()),
                "step": torch.tensor(step),
                "tokens": torch.from_numpy(rows.tokens[first : first + size].copy()),
            }
            for first in (2 * number * size, (2 * number + 1) * size)
        ]
        for number, step in enumerate(steps)
    ]


def broken(rows: Rows, steps: Sequence[int]) -> list[list[dict[str, torch.Tensor]]]:
    if 3 in steps:
        raise UserError("row 36 cannot be prepared: change it")
    return micro_batches(rows, steps)


class Stubborn(Exception):
    """An exception that no queue can carry."""

    def __init__(self, one: int, two: int) -> None:
        super().__init__(f"{one} and {two}")


def stubborn(rows: Rows, steps: Sequence[int]) -> list[list[dict[str, torch.Tensor]]]:
    raise Stubborn(1, 2)


def loader(stream: RowStream, transform=micro_batches, **changes) -> Loader:
    settings = {
        "first_step": 2,
        "last_step": 9,
        "rank": 1,
        "world_size": 2,
        "workers": 0,
        "prefetch_steps": 4,
    }
    return make_loader(stream, transform, **(settings | changes))


def plain(stream: RowStream, steps: range, rank: int, world_size: int) -> list:
    return [batch for step in steps for batch in micro_batches(stream.rows(step, rank, world_size), [step])[0]]


def assert_equal_batches(found: list, expected: list) -> None:
    assert len(found) == len(expected)
    for one, other in zip(found, expected, strict=True):
        for name in other:
            assert torch.equal(one[name], other[name])


@pytest.mark.parametrize("prefetch_steps", [1, 2, 5, 40])
@pytest.mark.parametrize("workers", [0, 1, 2])
def test_batches_are_those_of_the_stream(stream: RowStream, workers: int, prefetch_steps: int) -> None:
    found = list(loader(stream, workers=workers, prefetch_steps=prefetch_steps))
    assert_equal_batches(found, plain(stream, range(2, 9), 1, 2))


def test_a_second_iteration_starts_again(stream: RowStream) -> None:
    made = loader(stream)
    assert_equal_batches(list(made), list(made))


def test_no_steps_give_no_batches(stream: RowStream) -> None:
    for workers in (0, 1):
        assert list(loader(stream, first_step=5, last_step=5, workers=workers)) == []


def test_the_global_generator_is_left_alone(stream: RowStream) -> None:
    for workers in (0, 1):
        torch.manual_seed(0)
        before = torch.get_rng_state()
        list(loader(stream, workers=workers))
        assert torch.equal(torch.get_rng_state(), before)


@pytest.mark.parametrize("workers", [0, 1, 2])
def test_errors_reach_the_consumer_after_the_batches_before_them(stream: RowStream, workers: int) -> None:
    iterator = iter(loader(stream, broken, workers=workers, prefetch_steps=1))
    assert_equal_batches([next(iterator), next(iterator)], plain(stream, range(2, 3), 1, 2))
    with pytest.raises(UserError, match="row 36 cannot be prepared") as caught:
        next(iterator)
    assert str(caught.value) == "row 36 cannot be prepared: change it"
    in_traceback = any(entry.name == "broken" for entry in caught.traceback)
    in_note = any("in broken" in note for note in getattr(caught.value, "__notes__", []))
    assert in_traceback if workers == 0 else in_note


def test_errors_that_cannot_travel_arrive_as_text(stream: RowStream) -> None:
    with pytest.raises(RuntimeError, match="Stubborn: 1 and 2"):
        next(iter(loader(stream, stubborn, workers=1)))
    with pytest.raises(Stubborn, match="1 and 2"):
        next(iter(loader(stream, stubborn)))


def loader_threads() -> list[threading.Thread]:
    return [thread for thread in threading.enumerate() if thread.name == "pretrain-loader"]


@pytest.mark.parametrize("ending", ["close", "collect"])
def test_the_thread_ends_with_its_iterator(stream: RowStream, ending: str) -> None:
    iterator = iter(loader(stream, last_step=10_000, prefetch_steps=1))
    next(iterator)
    assert len(loader_threads()) == 1
    if ending == "close":
        iterator.close()
    else:
        del iterator
        gc.collect()
    assert loader_threads() == []


def test_an_interpreter_with_an_open_iterator_ends(stream: RowStream, tmp_path: Path) -> None:
    program = tmp_path / "program.py"
    program.write_text(
        "import pickle, sys\n"
        "from pipeline.data.loader import make_loader\n"
        "stream = pickle.loads(open(sys.argv[1], 'rb').read())\n"
        "def transform(rows, steps):\n"
        "    return [[numbers] for numbers in rows.row_numbers.reshape(len(steps), -1)]\n"
        "settings = dict(first_step=0, last_step=10**6, rank=0, world_size=1, workers=0)\n"
        "iterator = iter(make_loader(stream, transform, prefetch_steps=2, **settings))\n"
        "print(next(iterator).tolist())\n"
    )
    (tmp_path / "stream").write_bytes(pickle.dumps(stream))
    done = subprocess.run(
        [sys.executable, program, tmp_path / "stream"],
        cwd=Path(__file__).parents[3],
        env={"PYTHONPATH": "."},
        capture_output=True,
        text=True,
        timeout=60,
        check=True,
    )
    assert done.stdout.strip() == str(stream.rows(0).row_numbers.tolist())
    assert done.stderr == ""


def test_lightning_takes_it_as_it_is(stream: RowStream) -> None:
    import lightning.pytorch as pl

    class Module(pl.LightningModule):
        def __init__(self) -> None:
            super().__init__()
            self.weight = torch.nn.Parameter(torch.ones(1))
            self.seen: list[int] = []

        def training_step(self, batch, batch_idx):
            self.seen += batch["numbers"].tolist()
            return self.weight.sum()

        def configure_optimizers(self):
            return torch.optim.SGD(self.parameters(), 0.1)

    module = Module()
    trainer = pl.Trainer(
        max_epochs=1, accelerator="cpu", logger=False, enable_checkpointing=False, enable_progress_bar=False
    )
    trainer.fit(module, loader(stream))
    assert module.seen == [number for batch in plain(stream, range(2, 9), 1, 2) for number in batch["numbers"].tolist()]
    assert loader_threads() == []


def test_settings_out_of_range_are_refused(stream: RowStream) -> None:
    for name, value in (("workers", -1), ("prefetch_steps", 0)):
        with pytest.raises(UserError, match=rf"{name}( is)? {value} \(at least"):
            loader(stream, **{name: value})
