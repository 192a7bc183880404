"""Batches ahead of the training loop: a thread, or worker processes. The same batches in the same order either way.

Letters: G rows of a step over all ranks, R rows of this rank's share.
"""

from __future__ import annotations

import pickle
import queue
import threading
import traceback
from collections.abc import Callable, Generator, Iterator, Sequence
from dataclasses import dataclass
from typing import Any, Final, Generic, TypeVar

from pipeline.base.allocator import keep_freed_memory
from pipeline.base.errors import UserError
from pipeline.data.rows import Rows
from pipeline.data.stream import RowStream

BatchT = TypeVar("BatchT")
Transform = Callable[[Rows, Sequence[int]], Sequence[Sequence[BatchT]]]
"""(rows of this rank's shares of some steps, equally many each, step after step; the steps, counted from 0) ->
micro-batches of every step."""

_MOST_STEPS_TOGETHER: Final = 8
_TOKENS_TOGETHER: Final = 1 << 18
"""Small steps are planned, gathered and masked together, up to so many: each call of NumPy costs as much as the work on
thousands of tokens."""

_POLL_SECONDS: Final = 0.1
_END: Final = object()


@dataclass(frozen=True)
class _Failure:
    """An exception on its way from the producer to the consumer."""

    error: BaseException
    where: str

    def reraise(self) -> None:
        """Raise the error, with the producer's traceback as a note if the error came from another process."""
        if self.error.__traceback__ is None:
            self.error.add_note(self.where)
        raise self.error


@dataclass(frozen=True)
class _Steps(Generic[BatchT]):
    """What a producer computes: pure and picklable."""

    stream: RowStream
    transform: Transform[BatchT]
    first_step: int
    last_step: int
    rank: int
    world_size: int
    steps_together: int

    @property
    def num_groups(self) -> int:
        """Groups of steps that are planned and gathered together."""
        return -(-max(0, self.last_step - self.first_step) // self.steps_together)

    def group(self, number: int) -> Iterator[list[BatchT]]:
        """Micro-batches of every step of a group; those before a step that fails are given all the same."""
        first = self.first_step + number * self.steps_together
        steps = range(first, min(first + self.steps_together, self.last_step))
        try:
            made = [batches for alike in self.stream.alike(steps) for batches in self._made(alike)]
        except Exception:
            if len(steps) == 1:
                raise
            for step in steps:
                yield from self._made([step])
        else:
            yield from made

    def _made(self, steps: Sequence[int]) -> list[list[BatchT]]:
        rows = self.stream.joined_rows(steps, self.rank, self.world_size)
        return [list(batches) for batches in self.transform(rows, steps)]


class Loader(Generic[BatchT]):
    """Iterable of micro-batches; every iteration starts again at the first step.

    Anything that takes a PyTorch loader as an iterable takes it, Lightning's Trainer too. It has no length.
    """

    def __init__(self, steps: _Steps[BatchT], workers: int, prefetch_steps: int) -> None:
        self.steps = steps
        self.workers = workers
        self.prefetch_steps = prefetch_steps

    def __iter__(self) -> Iterator[BatchT]:
        source = _from_processes if self.workers else _from_thread
        produced = source(self.steps, self.workers, self.prefetch_steps)
        try:
            for micro_batches in produced:
                if isinstance(micro_batches, _Failure):
                    micro_batches.reraise()
                yield from micro_batches
        finally:
            produced.close()


def make_loader(
    stream: RowStream,
    transform: Transform[BatchT],
    *,
    first_step: int,
    last_step: int,
    rank: int,
    world_size: int,
    workers: int,
    prefetch_steps: int,
) -> Loader[BatchT]:
    """Micro-batches of steps ``first_step .. last_step - 1`` of one rank, in order.

    Args:
        transform: makes the micro-batches of rows; runs in the thread or process, must not touch global state.
        workers: 0 uses one thread of this process; else that many processes.
        prefetch_steps: steps ready ahead, a thread or worker.

    Raises:
        UserError: a number is out of range.
    """
    if workers < 0 or prefetch_steps < 1:
        raise UserError(
            f"data.workers is {workers} (at least 0) and data.prefetch_steps {prefetch_steps} (at least 1)."
        )
    keep_freed_memory()
    stage = stream.stages.of_step(first_step)
    tokens_a_step = -(-stage.global_batch_size // world_size) * stage.sequence_length
    steps_together = min(_MOST_STEPS_TOGETHER, max(1, _TOKENS_TOGETHER // tokens_a_step))
    steps = _Steps(stream, transform, first_step, last_step, rank, world_size, steps_together)
    return Loader(steps, workers, prefetch_steps)


def _from_thread(steps: _Steps[Any], workers: int, prefetch_steps: int) -> Generator[Any]:
    """One background thread; it ends when the iterator is exhausted, closed or collected."""
    ready: queue.Queue[Any] = queue.Queue(maxsize=prefetch_steps)
    stop = threading.Event()
    # A daemon, so that a consumer that never closes its iterator cannot keep the interpreter from ending.
    thread = threading.Thread(target=_produce, args=(steps, ready, stop), name="pretrain-loader", daemon=True)
    thread.start()
    try:
        while (item := _get(ready, thread)) is not _END:
            yield item
    finally:
        stop.set()
        thread.join(timeout=10.0)


def _produce(steps: _Steps[Any], ready: queue.Queue[Any], stop: threading.Event) -> None:
    try:
        for group in range(steps.num_groups):
            for micro_batches in steps.group(group):
                if not _put(ready, micro_batches, stop):
                    return
        _put(ready, _END, stop)
    except BaseException as error:
        _put(ready, _Failure(error, traceback.format_exc()), stop)


def _put(ready: queue.Queue[Any], item: Any, stop: threading.Event) -> bool:
    """Put unless stopped meanwhile."""
    while not stop.is_set():
        try:
            ready.put(item, timeout=_POLL_SECONDS)
            return True
        except queue.Full:
            continue
    return False


def _get(ready: queue.Queue[Any], thread: threading.Thread) -> Any:
    """Next item; a thread that died without a word is an error, not a hang."""
    while True:
        try:
            return ready.get(timeout=1.0)
        except queue.Empty:
            if not thread.is_alive() and ready.empty():
                raise RuntimeError("the loader's thread ended without finishing its steps") from None


def _from_processes(steps: _Steps[Any], workers: int, prefetch_steps: int) -> Generator[Any]:
    """A torch DataLoader over worker processes: group i of steps is done by worker i mod workers, and all in order."""
    import torch
    from torch.utils.data import DataLoader, Dataset

    class Groups(_Groups, Dataset):
        """Torch asks for its own base class."""

    groups: DataLoader[Any] = DataLoader(
        Groups(steps),
        batch_size=None,
        num_workers=workers,
        prefetch_factor=max(1, prefetch_steps // steps.steps_together),
        collate_fn=_as_it_is,
        # Else torch draws a seed from the global generator, and dropout would depend on the number of workers.
        generator=torch.Generator(),
    )
    for group in groups:
        yield from group


class _Groups:
    """Groups of consecutive steps by number; what a worker process is asked for."""

    def __init__(self, steps: _Steps[Any]) -> None:
        self.steps = steps

    def __len__(self) -> int:
        return self.steps.num_groups

    def __getitem__(self, group: int) -> list[Any]:
        made: list[Any] = []
        try:
            made.extend(self.steps.group(group))
        except Exception as error:
            made.append(_Failure(_that_travels(error), traceback.format_exc()))
        return made


def _that_travels(error: Exception) -> Exception:
    """The error, or its text where it cannot be pickled: a worker's queue would lose it without a word."""
    try:
        pickle.loads(pickle.dumps(error))
    except Exception:
        return RuntimeError(f"{type(error).__name__}: {error}")
    return error


def _as_it_is(item: Any) -> Any:
    return item
