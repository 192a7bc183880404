"""datatrove's local executor with worker processes that end with the build, and whose death is noticed.

A pipeline here is plain datatrove: its SLURM and Ray executors run the same steps. What this class changes in
`LocalPipelineExecutor.run`: a worker killed by the kernel (out of memory) raises an error, where a `Pool` waits for
ever; the workers serve all stages, so they import once; log lines go to the task's log file and not to the terminal.
"""

from __future__ import annotations

import contextlib
import multiprocessing
import os
import signal
import threading
from collections.abc import Iterator, Sequence
from concurrent.futures import FIRST_EXCEPTION, ProcessPoolExecutor, wait
from concurrent.futures.process import BrokenProcessPool
from copy import deepcopy
from multiprocessing.connection import Connection
from pathlib import Path

from datatrove.executor.local import LocalPipelineExecutor
from datatrove.pipeline.base import PipelineStep
from datatrove.utils.logging import logger
from datatrove.utils.stats import PipelineStats

from pipeline.base.errors import UserError


class CorpusExecutor(LocalPipelineExecutor):
    """Runs the tasks of one stage that are not completed yet, in this process or in the pool's.

    Args:
        pipeline: datatrove steps.
        tasks: number of tasks, from the input.
        logging_dir: completion marks, logs and statistics of the stage.
        pool: worker processes, or None to run in this one.
    """

    def __init__(
        self, pipeline: Sequence[PipelineStep], tasks: int, logging_dir: Path, pool: ProcessPoolExecutor | None
    ) -> None:
        super().__init__(list(pipeline), tasks=tasks, workers=1, logging_dir=str(logging_dir))
        self.pool = pool

    def __getstate__(self) -> dict:
        return {**self.__dict__, "pool": None}

    def run(self) -> None:
        """Run what is missing. The first error of a task is raised here, as the task raised it."""
        ranks = self.get_incomplete_ranks()
        if self.pool is None:
            for rank in ranks:
                run_task(self, rank)
            return
        futures = [self.pool.submit(run_task, self, rank) for rank in ranks]
        done, _ = wait(futures, return_when=FIRST_EXCEPTION)
        # Of several errors, the one of the first task: the same one for any number of workers, as far as can be.
        for future in futures:
            if future in done:
                future.result()

    def _run_for_rank(self, rank: int, local_rank: int = 0, node_rank: int = -1) -> PipelineStats:
        # datatrove logs to `sys.stderr`, whatever that is when a task begins, and to the task's log file.
        with open(os.devnull, "w") as nowhere, contextlib.redirect_stderr(nowhere):
            try:
                return super()._run_for_rank(rank, local_rank, node_rank)
            finally:
                logger.remove()


def run_task(executor: CorpusExecutor, rank: int) -> None:
    """Run one task on a copy of the pipeline, whose steps count their own statistics."""
    copied = deepcopy(executor.pipeline)
    original, executor.pipeline = executor.pipeline, copied
    try:
        executor._run_for_rank(rank)
    finally:
        executor.pipeline = original


def check_processes(processes: int | None) -> int:
    """How many worker processes to use: ``processes``, or one a core that this process may use.

    Raises:
        UserError: fewer than 1.
    """
    if processes is None:
        return len(os.sched_getaffinity(0))
    if processes < 1:
        raise UserError(f"--processes {processes}: at least 1 is needed.")
    return processes


@contextlib.contextmanager
def worker_pool(processes: int, *, keeps_work: bool = True) -> Iterator[ProcessPoolExecutor | None]:
    """Worker processes for all stages of a build, or None for one process.

    They come from a fork server: it imports once and holds no threads (forking a process with the threads of
    `tokenizers` or Arrow may hang). Even if this process is killed, they end with it: each waits for the end of a pipe
    whose other side is here.

    Args:
        keeps_work: whether the command goes on from finished work when it is run again, for the message.

    Raises:
        UserError: a worker was killed.
    """
    if processes == 1:
        with _one_thread_for_tokenizers():
            yield None
        return
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(["pipeline.corpus.stages"])
    before = set(multiprocessing.active_children())
    end_of_build, held_open = context.Pipe(duplex=False)
    pool = ProcessPoolExecutor(processes, mp_context=context, initializer=_start_worker, initargs=(end_of_build,))
    try:
        yield pool
        pool.shutdown()
    except BaseException as error:
        pool.shutdown(wait=False, cancel_futures=True)
        for process in set(multiprocessing.active_children()) - before:
            process.terminate()
        if isinstance(error, BrokenProcessPool):
            raise UserError(
                "A worker process was killed, most likely because the memory ran out. "
                f"{'Finished work is kept: run' if keeps_work else 'Run'} the command again with fewer processes "
                f"(--processes {max(1, processes // 2)}; this time {processes})."
            ) from error
        raise
    finally:
        held_open.close()
        end_of_build.close()


def _start_worker(end_of_build: Connection) -> None:
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C is the parent's affair
    os.environ["TOKENIZERS_PARALLELISM"] = "false"  # one process, one core
    threading.Thread(target=_end_with_the_build, args=(end_of_build,), daemon=True).start()


def _end_with_the_build(end_of_build: Connection) -> None:
    with contextlib.suppress(EOFError, OSError):
        end_of_build.recv()  # nothing is ever sent: this returns when the building process is gone
    os._exit(1)


@contextlib.contextmanager
def _one_thread_for_tokenizers() -> Iterator[None]:
    before = os.environ.get("TOKENIZERS_PARALLELISM")
    os.environ["TOKENIZERS_PARALLELISM"] = "false"
    try:
        yield
    finally:
        if before is None:
            del os.environ["TOKENIZERS_PARALLELISM"]
        else:
            os.environ["TOKENIZERS_PARALLELISM"] = before
