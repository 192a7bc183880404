"""The config of where a run's first weights come from, and its checks."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Literal

from pipeline.config.ranges import at_least

LongerPositions = Literal["refuse", "tile", "interpolate"]


@dataclass(frozen=True)
class StartConfig:
    """What the weights are before the first step. Default: the family's own random ones, from the seed."""

    from_pretrained: str | None = None
    """Folder of a Hugging Face model (`config.json`, safetensors): continued pretraining. What only this model has, a
    head or a pooler, keeps its random weights."""

    from_run: str | None = None
    """Run directory of this project, with its corpus in place, instead."""

    step: int | None = None
    """from_run: of which checkpoint. Default: the newest."""

    stack: int = 1
    """Blocks of the source, this many times on top of one another, make the blocks of this model (Gong et al. 2019)."""

    every_block: int = 1
    """Every so-manieth block of the source, from the first, makes one of this model (DistilBERT: 2)."""

    longer_positions: LongerPositions = "refuse"
    """Where this model has more learned positions than the source: `tile` repeats, `interpolate` stretches them."""

    extend_vocabulary: bool = False
    """The tokenizer has the source's ids and more after them: their rows are the mean of the source's."""


def start_problems(start: StartConfig, remap_vocabulary: str | None) -> Iterator[str]:
    """Problems of `start` and `model.remap_vocabulary`."""
    given = [name for name in ("from_pretrained", "from_run") if getattr(start, name) is not None]
    if len(given) == 2:
        yield "start.from_run: it and `start.from_pretrained` exclude each other; leave one out."
    for name in given:
        if not getattr(start, name):
            yield f"start.{name}: is empty; name a directory or leave it out."
    if start.step is not None and start.from_run is None:
        yield "start.step: says which checkpoint of `start.from_run`; set that, or leave it out."
    yield from at_least(0, start__step=start.step)
    yield from at_least(1, start__stack=start.stack, start__every_block=start.every_block)
    if start.stack > 1 and start.every_block > 1:
        yield "start.every_block: it and `start.stack` undo each other; leave one out."
    if not given:
        for name in ("stack", "every_block", "longer_positions", "extend_vocabulary"):
            if getattr(start, name) != getattr(StartConfig, name):
                yield f"start.{name}: changes weights of another model; set `start.from_pretrained`, or leave it out."
        if remap_vocabulary is not None:
            yield "model.remap_vocabulary: says which row of other weights an id takes; set `start.from_pretrained`."
    if remap_vocabulary is not None and start.extend_vocabulary:
        yield "start.extend_vocabulary: `model.remap_vocabulary` says where every row comes from; leave one out."
