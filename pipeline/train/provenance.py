"""`pretrain corpus where`: the steps of a run that see a document."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import asdict
from typing import Any

from pipeline.config.run import RunConfig
from pipeline.data.where import find_document, readings
from pipeline.train.streams import open_streams


def document_steps(
    config: RunConfig, document: str, progress: Callable[[int, int], None] | None = None
) -> dict[str, Any]:
    """Where a run reads a document: its places in the corpora and every row that holds tokens of it, as plain values.

    Steps are counted from 1, as in the metrics.

    Raises:
        UserError: no corpus has it, or anything wrong with a corpus.
    """
    streams = open_streams(config)
    stream = streams.train
    places = []
    for place in find_document(stream, document, progress):
        table = [
            {**asdict(reading), "step": reading.step + 1} for reading in readings(stream, place, config.train.steps)
        ]
        corpus = streams.sources[place.source].files.location
        places.append({"corpus": corpus, "shard": place.shard, "number": place.document, "readings": table})
    return {"document": document, "steps_of_the_run": config.train.steps, "places": places}


def lines_of(facts: dict[str, Any]) -> list[str]:
    """The facts of :func:`document_steps` for a person."""
    lines = []
    for place in facts["places"]:
        lines.append(f"{facts['document']}: document {place['number']} of shard {place['shard']} of {place['corpus']}")
        if not place["readings"]:
            lines.append(f"  not read in the {facts['steps_of_the_run']} steps of this run")
        for reading in place["readings"]:
            last = reading["first_token"] + reading["num_tokens"] - 1
            lines.append(
                f"  step {reading['step']}: tokens {reading['first_token']} to {last} in row {reading['row']}, "
                f"epoch {reading['epoch']}"
            )
    return lines
