"""A save of BERT-base with AdamW's state: how long the training loop stands still, and until it is on disk; a load.

Ours (snapshot in memory, a process of its own writes it) against `torch.save` of the same state, and against
`torch.distributed.checkpoint.async_save` as documented, whose thread writes. All three end with an fsync. Beside them
the plain copy of all tensors in memory: what no snapshot can do without. All keep the last checkpoint until the new one
is on disk, and then delete it. Every save is loaded again, and what comes
back is compared to the bit; the first one while the state changes as soon as the loop may go on.
"""

from __future__ import annotations

import argparse
import os
import shutil
import sys
import tempfile
import time
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from statistics import median
from typing import Any, Final, NamedTuple

import torch
from torch import Tensor, nn
from torch.optim import Optimizer

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from benchmarks.machine import WORK, interleaved, versions
from benchmarks.optimizers import BERT_BASE, CONFIGS, SMALL, model_with_gradients
from benchmarks.record import Goal, Result, Table, write_record
from pipeline.checkpoints.meta import CheckpointMeta, checkpoint_directory, describe
from pipeline.checkpoints.pieces import WEIGHT, Piece
from pipeline.checkpoints.reading import CheckpointReader
from pipeline.checkpoints.retention import Retention
from pipeline.checkpoints.verifying import damage_of
from pipeline.optim.build import make_optimizer
from pipeline.train.background_saves import BackgroundSaves
from pipeline.train.control import ControlPlane

OURS: Final = "ours"
COPY: Final = "plain copy in memory"
MOST_STALL_TO_COPY: Final = 2.0
PREPARATION_SECONDS: Final = 5.0
"""From the end of the first step to the first save, at least."""


class State:
    """A model and its optimizer after one step."""

    def __init__(self, model: nn.Module, optimizer: Optimizer) -> None:
        self.model, self.optimizer = model, optimizer

    def tensors(self) -> Iterator[tuple[str, Tensor]]:
        """Everything that is saved, tied weights once, under the keys of our files."""
        for name, parameter in self.model.named_parameters():
            yield f"{WEIGHT}/{name}", parameter.detach()
            for kind, value in self.optimizer.state[parameter].items():
                yield f"{kind}/{name}", value

    def as_torch_saves_it(self) -> dict[str, Any]:
        return {"model": self.model.state_dict(), "optimizer": self.optimizer.state_dict()}

    def num_parameters(self) -> int:
        return sum(parameter.numel() for parameter in self.model.parameters())

    def change(self) -> None:
        """As training would; called twice it is undone to the bit."""
        for _, tensor in self.tensors():
            tensor.neg_()


class Save(NamedTuple):
    """A save that has begun: the loop may go on."""

    stall_seconds: float
    finish: Callable[[], None]
    """Waits until it is on disk."""


class Contender(ABC):
    """Saves into ``directory`` and loads from it."""

    def __init__(self, directory: Path) -> None:
        self.directory = directory

    def prepare(self, state: State) -> None:  # noqa: B027 - most have nothing to prepare
        """What is done long before the first save."""

    @abstractmethod
    def begin(self, state: State) -> Save:
        """Save; returns when the loop may go on."""

    @abstractmethod
    def load(self, state: State) -> None:
        """Fill ``state`` with what was saved last."""

    def close(self) -> None:  # noqa: B027 - most have nothing open
        """End what is open."""

    def num_bytes(self) -> int:
        return sum(path.stat().st_size for path in self.directory.rglob("*") if path.is_file())


class Ours(Contender):
    """`pretrain train`'s, of one rank."""

    def __init__(self, directory: Path) -> None:
        super().__init__(directory)
        control, retention = ControlPlane(1, patience_seconds=600), Retention(keep_last=1, every_steps=1)
        self.saves = BackgroundSaves(directory, control, 0, retention, "benchmark", lambda outcome: None)
        self.num_saves = 0

    def prepare(self, state: State) -> None:
        self.saves.prepare(lambda: self._pieces(state))

    def _pieces(self, state: State) -> list[Piece]:
        return [Piece(key, tuple(tensor.shape), 0, tensor) for key, tensor in state.tensors()]

    def begin(self, state: State) -> Save:
        self.num_saves += 1
        description = describe(CheckpointMeta(self.num_saves, 0, "single", "fp32", 1, identity={}, facts={}))
        started = time.perf_counter()
        self.saves.begin(self.num_saves, lambda: self._pieces(state), description)
        return Save(time.perf_counter() - started, self._finish)

    def _finish(self) -> None:
        error = self.saves.settle()
        assert error is None, error

    def load(self, state: State) -> None:
        """As a start of a run does: every checksum first."""
        path = checkpoint_directory(self.directory, self.num_saves)
        assert damage_of(path) == []
        reader = CheckpointReader(path)
        for key, tensor in state.tensors():
            reader.copy_into(tensor.view(-1), key)

    def close(self) -> None:
        self.saves.close()


class TorchSave(Contender):
    """`torch.save`, which the loop waits for."""

    def begin(self, state: State) -> Save:
        self.directory.mkdir(exist_ok=True)
        started = time.perf_counter()
        with open(self.directory / "new.pt", "wb") as file:
            torch.save(state.as_torch_saves_it(), file)
            file.flush()
            os.fsync(file.fileno())
        os.replace(self.directory / "new.pt", self.directory / "state.pt")
        return Save(time.perf_counter() - started, lambda: None)

    def load(self, state: State) -> None:
        loaded = torch.load(self.directory / "state.pt", weights_only=True)
        state.model.load_state_dict(loaded["model"])
        state.optimizer.load_state_dict(loaded["optimizer"])


class AsyncSave(Contender):
    """`torch.distributed.checkpoint.async_save` with its defaults, one rank."""

    def __init__(self, directory: Path) -> None:
        super().__init__(directory)
        import torch.distributed as dist

        store = directory.resolve().with_name("store")
        dist.init_process_group("gloo", init_method=f"file://{store}", rank=0, world_size=1)

    def begin(self, state: State) -> Save:
        from torch.distributed import checkpoint

        new, old = self.directory / "new", self.directory / "state"
        started = time.perf_counter()
        saving: Any = checkpoint.async_save(state.as_torch_saves_it(), checkpoint_id=new)

        def finish() -> None:
            saving.result()
            shutil.rmtree(old, ignore_errors=True)
            new.rename(old)

        return Save(time.perf_counter() - started, finish)

    def load(self, state: State) -> None:
        from torch.distributed import checkpoint

        loaded = state.as_torch_saves_it()
        checkpoint.load(loaded, checkpoint_id=self.directory / "state")
        state.model.load_state_dict(loaded["model"])
        state.optimizer.load_state_dict(loaded["optimizer"])

    def close(self) -> None:
        import torch.distributed as dist

        dist.destroy_process_group()


CONTENDERS: Final[Mapping[str, type[Contender]]] = {
    OURS: Ours,
    "torch.save": TorchSave,
    "torch.distributed.checkpoint.async_save": AsyncSave,
}


class Figures(NamedTuple):
    """Of one contender: seconds, and bytes a parameter."""

    first_stall: float
    stall: float
    total: float = 0.0
    load: float = 0.0
    bytes_a_parameter: float = 0.0


def save_and_load(contender: Contender, state: State, changes: bool = False) -> tuple[float, float, float]:
    """Seconds of stall, total and load.

    Args:
        changes: whether the state changes while the save is under way.

    Raises:
        AssertionError: what was loaded is not what was saved.
    """
    started = time.perf_counter()
    save = contender.begin(state)
    if changes:
        state.change()
    save.finish()
    total = time.perf_counter() - started
    if changes:
        state.change()
    expected = {key: tensor.clone() for key, tensor in state.tensors()}
    state.change()
    started = time.perf_counter()
    contender.load(state)
    load = time.perf_counter() - started
    wrong = [key for key, tensor in state.tensors() if not torch.equal(tensor, expected[key])]
    assert not wrong, f"{type(contender).__name__}: {len(wrong)} tensors have changed on the way, {wrong[0]} for one"
    return save.stall_seconds, total, load


def measure(state: State, repetitions: int, directory: Path) -> dict[str, Figures]:
    """Every contender in every round, each round in another order; medians, but for the first saves.

    Raises:
        AssertionError: see :func:`save_and_load`.
    """
    memory: list[Tensor] = []

    def copy() -> float:
        started = time.perf_counter()
        if memory:
            for target, (_, tensor) in zip(memory, state.tensors(), strict=True):
                target.copy_(tensor)
        else:
            memory.extend(tensor.clone() for _, tensor in state.tensors())
        return time.perf_counter() - started

    contenders = {name: make(directory / str(number)) for number, (name, make) in enumerate(CONTENDERS.items())}
    for contender in contenders.values():
        contender.prepare(state)
    time.sleep(PREPARATION_SECONDS)
    first = {name: save_and_load(contender, state, changes=True)[0] for name, contender in contenders.items()}
    first[COPY] = copy()
    others: dict[str, list[tuple[float, float]]] = {name: [] for name in contenders}

    def measured(name: str) -> float:
        stall, *rest = save_and_load(contenders[name], state)
        others[name].append((rest[0], rest[1]))
        return stall

    rounds: dict[str, Callable[[], float]] = {name: lambda name=name: measured(name) for name in contenders}
    stalls = interleaved({**rounds, COPY: copy}, repetitions, "stall, s,")
    figures = {COPY: Figures(first[COPY], median(stalls[COPY]))}
    for name, contender in contenders.items():
        total, load = (median(column) for column in zip(*others[name], strict=True))
        kept = contender.num_bytes() / state.num_parameters()
        figures[name] = Figures(first[name], median(stalls[name]), total, load, kept)
        contender.close()
    return figures


def results_of(figures: Mapping[str, Figures]) -> list[Result]:
    """Ours beside the peers; and the stall beside the copy that it must contain."""
    peers = [name for name in CONTENDERS if name != OURS]
    units = {"stall": "s", "total": "s", "load": "s", "bytes_a_parameter": "bytes"}
    compared = [
        Result(
            f"save_{part}" if part in ("stall", "total") else part,
            unit,
            "lower",
            getattr(figures[OURS], part),
            {name: getattr(figures[name], part) for name in peers},
        )
        for part, unit in units.items()
    ]
    to_copy = figures[OURS].stall / figures[COPY].stall
    return [
        *compared,
        Result("stall_to_plain_copy", "times", "lower", to_copy, goal=Goal(ours=MOST_STALL_TO_COPY)),
    ]


def table_of(figures: Mapping[str, Figures]) -> Table:
    """All of them; the first save of a process has to get its memory from the system."""
    header = ["", "first stall, s", "stall, s", "total, s", "load, s", "bytes a parameter"]
    rows: list[list[str | float]] = []
    for name in (OURS, *(name for name in CONTENDERS if name != OURS)):
        rows.append([name, *(float(f"{value:.3g}") for value in figures[name])])
    first, stall = (float(f"{value:.3g}") for value in figures[COPY][:2])
    return Table(header, [*rows, [COPY, first, stall, "", "", ""]])


def main(arguments: list[str] | None = None) -> None:
    """Measure and write."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--json", type=Path, help="write the results here")
    parser.add_argument("--quick", action="store_true", help="a smoke test; its numbers say nothing")
    parser.add_argument("--repetitions", type=int, default=5, metavar="N", help="rounds (default 5)")
    options = parser.parse_args(arguments)
    model = model_with_gradients(SMALL if options.quick else BERT_BASE, torch.device("cpu"))
    optimizer = make_optimizer(model, CONFIGS["adamw"])
    optimizer.step()
    state = State(model, optimizer)
    WORK.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=WORK, prefix="checkpoint-") as directory:
        figures = measure(state, 1 if options.quick else options.repetitions, Path(directory))
    facts = {"parameters": f"{state.num_parameters() / 1e6:.1f} million", "threads": str(torch.get_num_threads())}
    write_record(
        options.json, "checkpoint", versions("torch"), results_of(figures), {"saves": table_of(figures)}, facts
    )


if __name__ == "__main__":
    main()
