"""One rank that walks through the steps of a run and writes down what it would train on; made to be killed.

python -m tests.stream_program CONFIG FIRST_STEP RANK WORLD_SIZE OUTPUT
"""

from __future__ import annotations

import sys
from pathlib import Path

import torch

from pipeline.base.ranks import RankFacts
from pipeline.config.derived import batch_plan
from pipeline.config.loading import load_run_config
from pipeline.train.streams import open_streams


def main(config_path: str, first_step: int, rank: int, world_size: int, output: str) -> None:
    """A line a micro-batch: step, then row number and digest of every row."""
    torch.set_num_threads(1)
    config = load_run_config(config_path)
    streams = open_streams(config)
    facts = RankFacts(rank, world_size, rank, world_size)
    loader = streams.train_loader(first_step, batch_plan(config, world_size), facts, torch.device("cpu"))
    with open(Path(output), "a", buffering=1) as file:
        for batch in loader:
            rows = zip(batch.row_numbers.tolist(), batch.row_digests.numpy(), strict=True)
            print(batch.step, *(f"{number}:{digest.tobytes().hex()}" for number, digest in rows), file=file)


if __name__ == "__main__":
    main(sys.argv[1], *map(int, sys.argv[2:5]), sys.argv[5])
