"""Runs that are killed: how many end as if nothing had happened, what they lose, and how long a restart takes.

A trial is a tiny run of two ranks, under ddp and zero1 in turn, hit by one or two signals: SIGTERM, SIGUSR1 or SIGKILL
to a rank, torchrun or the launcher, during start-up, the first work of the loader, a step or a save. The same command
starts it again until it is finished. It has survived if no process stood still for a minute, every start went on from
the newest checkpoint, and steps, losses, gradient norms, digests and final weights are those of a run left alone, to
the bit. The number of a trial is its seed: `--first N --trials 1` does trial N again.

With `--json PATH` results are written after every trial, and trials that stand there already are not done again.
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import statistics
import sys
import tempfile
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Final

import numpy as np

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from benchmarks.faults_restart import SPLIT, measure_restart, settings_of_restarts
from benchmarks.faults_trial import (
    MOMENTS,
    SIGNALS,
    STRATEGIES,
    Outcome,
    Undisturbed,
    draw,
    run_trial,
    run_undisturbed,
)
from benchmarks.machine import versions
from benchmarks.record import Goal, Result, Table, join_record, print_record
from pipeline.train.faults import ended_by_sigterm

_PACKAGES: Final = ("torch", "lightning", "deepspeed")
_OUTCOMES: Final = ("seed", "strategy", "signals", "starts", "refused", "lost steps", "problems", "seconds")


def main() -> None:
    """Do what the command line asks for; exit with 1 if a trial has not survived."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--trials", type=int, default=200, metavar="N", help="trials (default 200; 0: none)")
    parser.add_argument("--first", type=int, default=0, metavar="SEED", help="number of the first one (default 0)")
    parser.add_argument(
        "--limit",
        type=float,
        default=60.0,
        metavar="S",
        help="seconds without a sign of life (default 60)",
    )
    parser.add_argument("--restarts", type=int, default=3, metavar="N", help="restarts timed, of each kind (default 3)")
    parser.add_argument("--quick", action="store_true", help="two trials, one restart: a smoke test")
    parser.add_argument("--json", type=Path, metavar="PATH", help="write the results there, and go on from them")
    options = parser.parse_args()
    trials, restarts = (2, 1) if options.quick else (options.trials, options.restarts)
    with ended_by_sigterm(), tempfile.TemporaryDirectory() as directory:
        corpus = write_tiny_corpus(Path(directory))
        rows = do_trials(
            range(options.first, options.first + trials), options.limit, Path(directory), corpus, options.json
        )
        if restarts:
            time_restarts(restarts, options.limit, Path(directory), corpus, options.json)
    if options.json is not None and options.json.is_file():
        print_record(json.loads(options.json.read_text(encoding="utf-8")))
    sys.exit(any(row[_OUTCOMES.index("problems")] for row in rows))


def do_trials(
    seeds: Sequence[int], limit_seconds: float, directory: Path, corpus: Path, path: Path | None
) -> list[list[Any]]:
    """The rows of all trials of ``seeds``: those in ``path`` are taken from there."""
    wanted = set(seeds)
    known = {row[0]: row for row in _table(path, "outcomes") if row[0] in wanted}
    missing = [seed for seed in seeds if seed not in known]
    undisturbed: dict[str, Undisturbed] = {}
    for seed in missing:
        trial = draw(seed)
        if trial.strategy not in undisturbed:
            undisturbed[trial.strategy] = run_undisturbed(trial.strategy, directory, corpus, limit_seconds)
        outcome = run_trial(trial, undisturbed[trial.strategy], directory, corpus, limit_seconds)
        known[seed] = _row(outcome)
        print(f"trial {seed} ({trial.strategy}): {'; '.join(map(str, trial.blows))}: {_told(outcome)}", flush=True)
        if outcome.problems:
            print((directory / f"trial-{seed}.log").read_text()[-5000:], file=sys.stderr)
        shutil.rmtree(directory / f"trial-{seed}", ignore_errors=True)
        _write_trials([known[done] for done in sorted(known)], path)
    return [known[seed] for seed in seeds]


def time_restarts(repetitions: int, limit_seconds: float, directory: Path, corpus: Path, path: Path | None) -> None:
    """Measure restarts and write them, unless they are in ``path``."""
    done = {row[0] for row in _table(path, "restart")}
    table = [list(row) for row in _table(path, "restart")]
    for name, overrides in settings_of_restarts(directory).items():
        if name in done:
            continue
        measured = [measure_restart(overrides, directory, corpus, limit_seconds) for _ in range(repetitions)]
        medians = {part: statistics.median(times[part] for times in measured) for part in ("total", *SPLIT)}
        print(f"restart, {name}: {medians}", flush=True)
        table.append([name, *(round(medians[part], 2) for part in ("total", *SPLIT))])
        results = [Result(f"restart, {row[0]}: kill -9 to the next step", "seconds", "lower", row[1]) for row in table]
        tables = {"restart": Table(["strategy", "kill -9 to the next step, s", *SPLIT], table)}
        join_record(path, "faults", versions(*_PACKAGES), results, tables, {})


def _table(path: Path | None, name: str) -> list[list[Any]]:
    if path is None or not path.is_file():
        return []
    return json.loads(path.read_text(encoding="utf-8"))["tables"].get(name, {"rows": []})["rows"]


def _row(outcome: Outcome) -> list[Any]:
    signals, problems = "; ".join(outcome.struck), "; ".join(outcome.problems)
    facts = (outcome.starts, outcome.refused, outcome.lost_steps, problems, outcome.seconds)
    return [outcome.trial.seed, outcome.trial.strategy, signals, *facts]


def _told(outcome: Outcome) -> str:
    end = "; ".join(outcome.problems) or "survived"
    return f"{end} ({outcome.starts} starts, {outcome.lost_steps} steps lost, {outcome.seconds:g} s)"


def _write_trials(rows: list[list[Any]], path: Path | None) -> None:
    """Results and tables of all trials so far."""
    lost, starts, problems = (_OUTCOMES.index(name) for name in ("lost steps", "starts", "problems"))
    survived = sum(not row[problems] for row in rows)
    results = [
        Result("trials that survived", "%", "higher", 100 * survived / len(rows), goal=Goal(ours=100.0)),
        Result("steps lost in a trial", "steps", "lower", statistics.mean(row[lost] for row in rows)),
    ]
    by_strategy = []
    for strategy in STRATEGIES:
        if chosen := [row for row in rows if row[1] == strategy]:
            alive = sum(not row[problems] for row in chosen)
            mean = round(statistics.mean(row[lost] for row in chosen), 2)
            most = max(row[lost] for row in chosen)
            by_strategy.append([strategy, len(chosen), alive, sum(row[starts] for row in chosen), mean, most])
    struck = Counter(
        (blow.split(" to ")[0], blow.rpartition(" at ")[2]) for row in rows for blow in row[2].split("; ") if blow
    )
    tables = {
        "trials": Table(["strategy", "trials", "survived", "starts", "lost steps a trial", "most"], by_strategy),
        "signals": Table(
            ["signal", *MOMENTS], [[name, *(struck[name, moment] for moment in MOMENTS)] for name in SIGNALS]
        ),
        "outcomes": Table(_OUTCOMES, rows),
    }
    facts = {"trials": len(rows), "survived": survived, "signals": struck.total()}
    join_record(path, "faults", versions(*_PACKAGES), results, tables, facts)


def write_tiny_corpus(directory: Path) -> Path:
    """90 documents of random ids in three shards; its directory."""
    from benchmarks.engine import Document, write_corpus

    generator = np.random.default_rng(0)
    shards = [
        [
            Document(f"{shard}/{number}", generator.integers(200, 400, generator.integers(8, 120)).astype(np.uint16))
            for number in range(30)
        ]
        for shard in range(3)
    ]
    corpus = directory / "corpus"
    os.makedirs(corpus / "train")
    write_corpus(corpus, shards, 400, b"{}")
    return corpus


if __name__ == "__main__":
    main()
