"""The stream at 10^12 tokens, planned but not read: `python benchmarks/stream_scale.py [--quick] [--json PATH]`.

The corpora are synthetic: their indexes are made when they are read (`benchmarks/synthetic.py`). Every measurement of
time and memory runs in a process of its own, on one core.
"""

from __future__ import annotations

import argparse
import os
import statistics
import sys
from collections.abc import Callable
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from benchmarks import order_tables, planning, synthetic
from benchmarks.machine import WORK, use_one_core, versions
from benchmarks.record import Goal, Result, Table, write_record

MANY, FEW = 100_000, 1_000
STEPS = (10, 100_000, 10_000_000)
LANES_A_NODE = 4
UNTIMED_STEPS = 600
"""After so many steps looking ahead has reached its full distance."""


def main() -> None:
    """Measure and print; write the JSON if asked to."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--json", type=Path, help="also write the results to this file")
    parser.add_argument("--quick", action="store_true", help="one repetition, smaller tables: under a minute")
    options = parser.parse_args()
    use_one_core()
    os.environ["PYTHONPATH"] = sys.path[0]
    directories = {}
    for num_shards in (FEW, MANY):
        directories[num_shards] = WORK / f"synthetic-{num_shards}"
        synthetic.write(directories[num_shards], num_shards, planning.SEQUENCE_LENGTH)
    results, runs = measure_opening(directories, 1 if options.quick else 3)
    more, steady = measure_steps(directories[MANY], options.quick)
    results += more
    num_shards = 2_000 if options.quick else 20_000
    downloads, worst = download_table(num_shards, 1_000)
    tables = {
        "planning": planning_table(runs + steady),
        "download_factor": downloads,
        "shuffle": shuffle_table(num_shards, 1_000),
    }
    name = f"download factor with {LANES_A_NODE} lanes a node or more, worst of its table"
    results.append(Result(name, "times each shard", "lower", worst, goal=Goal(ours=1.25)))
    facts = {
        "corpus": f"{MANY:,} shards of {synthetic.DOCUMENTS_A_SHARD:,} documents, log-normal lengths of mean 1,000 "
        f"(10^12 tokens); best fit, {planning.BATCH_ROWS} rows of {planning.SEQUENCE_LENGTH} a batch, 256 open shards",
        "making the synthetic indexes, share of the time to open": round(
            max(run.making_seconds / run.first_step_seconds for _, run in runs), 3
        ),
        "order tables": f"one whole epoch of {num_shards:,} shards of about 1,000 rows, 8 ranks a node",
        "share of its core that the slowest run had": round(min(run.core_share for _, run in runs + steady), 2),
    }
    write_record(options.json, "stream_scale", versions("numpy", "pretrain"), results, tables, facts)


Run = tuple[str, planning.Measured]


def measure_opening(directories: dict[int, Path], repetitions: int) -> tuple[list[Result], list[Run]]:
    """Seconds from nothing to a stream, and to the plan of its first step, at steps far apart."""
    cases: dict[str, tuple[Callable[[], planning.Measured], float | None, float | None]] = {}
    for step in STEPS:
        for num_shards, world_size, open_goal, plan_goal in (
            (FEW, 1, 0.1, None),
            (MANY, 1, None, 1.5),
            (MANY, 8, None, 0.2),
        ):
            name = f"step {step:,} of {num_shards:,} shards, rank 0 of {world_size}"
            directory = directories[num_shards]
            cases[name] = (
                lambda directory=directory, step=step, world_size=world_size: planning.in_new_process(
                    directory, step, 0, 0, world_size
                ),
                open_goal,
                plan_goal,
            )
    found: dict[str, list[planning.Measured]] = {name: [] for name in cases}
    for _ in range(repetitions):
        for name, (measure, _, _) in cases.items():
            found[name].append(measure())
    results, runs = [], []
    for name, (_, open_goal, plan_goal) in cases.items():
        opened = statistics.median(run.open_seconds for run in found[name])
        planned = [run.first_step_seconds for run in found[name]]
        print(
            f"  {name}: {opened:.3f} s, with the first plan {', '.join(f'{value:.3f}' for value in planned)} s",
            flush=True,
        )
        results += [
            Result(f"open at {name}", "seconds", "lower", opened, goal=Goal(ours=open_goal)),
            Result(f"open and plan {name}", "seconds", "lower", statistics.median(planned), goal=Goal(ours=plan_goal)),
        ]
        runs.append((name, sorted(found[name], key=lambda run: run.first_step_seconds)[len(planned) // 2]))
    return results, runs


def measure_steps(directory: Path, quick: bool) -> tuple[list[Result], list[Run]]:
    """Milliseconds a step far into an epoch and across an epoch's edge, and memory."""
    steps = 300 if quick else 2_000
    edge = planning.last_step_of_epoch(directory)
    runs = [
        ("steady, step 10,000,000", planning.in_new_process(directory, 10_000_000, steps, 0, 1, UNTIMED_STEPS)),
        ("steady, rank 3 of 8", planning.in_new_process(directory, 10_000_000, steps, 3, 8, UNTIMED_STEPS)),
        (
            "across an epoch's edge",
            planning.in_new_process(directory, edge - UNTIMED_STEPS - steps // 2, steps, 0, 1, UNTIMED_STEPS),
        ),
        ("the first steps after a start", planning.in_new_process(directory, 10_000_000, UNTIMED_STEPS)),
    ]
    assert runs[2][1].epoch_edge
    results = []
    for name, run in runs:
        milliseconds = run.step_milliseconds
        goals = {"median": Goal(ours=1.0), "worst": Goal(ours=25.0)} if not name.startswith("the first") else {}
        results += [
            Result(f"plan a step, {kind}: {name}", "ms", "lower", milliseconds[kind], goal=goals.get(kind, Goal()))
            for kind in ("median", "worst")
        ]
    memory = max(run.resident_megabytes for _, run in runs)
    results.append(Result("memory of a planning process, 100,000 shards", "MB", "lower", memory, goal=Goal(ours=200.0)))
    return results, runs


def planning_table(runs: list[Run]) -> Table:
    """Every run in one line."""
    rows: list[list[str | float | int]] = []
    for name, run in runs:
        milliseconds = run.step_milliseconds
        steps = (
            ""
            if milliseconds["worst"] != milliseconds["worst"]
            else " / ".join(f"{milliseconds[kind]:.2f}" for kind in ("median", "mean", "worst"))
        )
        opened = [round(run.open_seconds, 3), round(run.first_step_seconds, 3), run.open_indexes]
        rows.append([name, *opened, steps, round(run.resident_megabytes)])
    return Table(
        [
            "case",
            "open, s",
            "open and first plan, s",
            "indexes read",
            "a step: median / mean / worst, ms",
            "memory, MB",
        ],
        rows,
    )


def download_table(num_shards: int, rows_a_shard: int) -> tuple[Table, float]:
    """Download factors of lanes and batches for 1 to 512 nodes, and the worst of those with enough lanes."""
    rows: list[list[str | float | int]] = []
    worst = 0.0
    for open_shards, batch in (
        (64, 4096),
        (256, 256),
        (256, 3000),
        (256, 4096),
        (512, 4096),
        (1024, 4096),
        (2048, 4096),
    ):
        lanes, window = order_tables.default_shape(batch, open_shards)
        order = order_tables.make_order(num_shards, rows_a_shard, lanes, window)
        epoch = order_tables.whole_epoch(order, batch)
        factors = [order_tables.download_factor(epoch, num_shards, nodes) for nodes in order_tables.NODES]
        name = f"{open_shards} open, batch {batch}: {lanes} lanes x {window}"
        rows.append([name, *("-" if factor is None else round(factor, 2) for factor in factors)])
        for nodes, factor in zip(order_tables.NODES, factors, strict=True):
            if factor is not None and lanes >= LANES_A_NODE * nodes:
                worst = max(worst, factor)
    return Table(["nodes", *(str(nodes) for nodes in order_tables.NODES)], rows), worst


def shuffle_table(num_shards: int, rows_a_shard: int) -> Table:
    """Mixing in a batch of 256 by the default, by other shapes of the same order, and by other ways to read."""
    batch, steps = 256, 800
    rows: list[list[str | float | int]] = []

    def add(name: str, epoch: order_tables.Epoch, num_rows: int) -> None:
        found = order_tables.quality(epoch, num_rows)
        effects = " / ".join(f"{effect:.2f}" for effect in found.design_effects)
        rows.append(
            [
                name,
                round(found.distinct_shards, 1),
                effects,
                f"{100 * found.repeated_shards:.0f} %",
                f"{100 * found.neighbour_distance:.2g} %",
            ]
        )

    for lanes, window in ((256, 1), (64, 4), (16, 16), (64, 1), (1, 256)):
        order = order_tables.make_order(num_shards, rows_a_shard, lanes, window)
        name = "sequential windows of 256 shards" if lanes == 1 else f"{lanes} lanes x {window}"
        add(
            f"{name} (default)" if (lanes, window) == (256, 1) else name,
            order_tables.whole_epoch(order, batch),
            order.num_rows,
        )
    # A pool mixes the fewer shards the longer they are, so here they have the length of a default build's.
    order = order_tables.make_order(max(8, num_shards // 16), 16 * rows_a_shard, 1, 1)
    pool = order_tables.shard_after_shard(order, batch, steps)
    add(f"shard after shard, pool of {order_tables.POOL_ROWS:,} rows", pool, order.num_rows)
    drawn = order_tables.independent(num_shards, rows_a_shard, batch, steps)
    add("independent rows", drawn, num_shards * rows_a_shard)
    header = [
        "order",
        "distinct shards",
        "design effect, ICC 0.1 / 0.3",
        "shards of the batch before",
        "neighbours apart",
    ]
    return Table(header, rows)


if __name__ == "__main__":
    main()
