"""Goodput: the share of a run's wall time that became retained progress, over all its starts; and what took the rest.

A start of the run is cut into four stretches, which meet without gaps:

    began ......... ready ................ kept ............ end ......... began (the next start)
          start_up        retained steps         redo            stopped

``kept`` is the moment of the last step that a later start did not compute again; ``end`` is the last sign of life.
From the retained steps' time go checkpoints, validation, waits for data, and what the first steps take longer than
usual (compilation); the rest is productive. Steps are exact, since every start notes how far the one before came;
times between two logged steps are interpolated. Pure functions over the records of ``events.jsonl`` and
``metrics.jsonl``, but for :func:`goodput_of`, which reads them.
"""

from __future__ import annotations

import bisect
import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from statistics import median
from typing import Any, Final

from pipeline.monitor.events import OUTSIDE_EVENTS, STARTING_EVENTS, read_events
from pipeline.monitor.json_lines import Record, moment, number, read_records
from pipeline.monitor.meters import format_seconds
from pipeline.monitor.progress import Progress, read_progress
from pipeline.monitor.sinks import SUPERSEDED_NAME, read_metrics

CAUSES: Final = ("stopped", "start_up", "redo", "checkpoint", "validation", "data_wait", "compile")
"""Where wall time is lost; what each holds is in ``docs/monitor.md``."""

_ENDS: Final = ("hung", "lost_rank", "failed")
"""What a start says when it has not come on for some time: the waiting is no work."""


@dataclass
class _Start:
    """A start of the run; moments are seconds since 1970."""

    first_step: int
    began: float
    end: float
    ready: float | None = None
    reached: int = 0
    kept: int = 0
    """Steps done when it ended, and those of them that no later start computed again."""

    checkpoints: list[tuple[int, float]] = field(default_factory=list)
    """(step, seconds that the loop stood still) of every save."""

    lines: list[tuple[float, Record, bool]] = field(default_factory=list)
    """(moment, metrics, whether they are retained), in order."""

    def kept_until(self) -> float:
        """The moment at which the last retained step was done."""
        ready = self.end if self.ready is None else self.ready
        if self.kept >= self.reached:
            return self.end
        if self.kept <= self.first_step:
            return ready
        points = [(ready, self.first_step), *((when, int(line["step"])) for when, line, _ in self.lines)]
        points = [*points, (self.end, self.reached)]
        after = bisect.bisect_left(points, self.kept, key=lambda point: point[1])
        (begin, step), (end, next_step) = points[after - 1], points[after]
        return begin + (end - begin) * (self.kept - step) / (next_step - step)

    def num_redone(self) -> int:
        """Steps done here that a later start computed again."""
        return max(0, self.reached - max(self.kept, self.first_step))

    def retained_lines(self) -> Iterator[tuple[int, Record]]:
        """(steps that it tells of, line)."""
        before = self.first_step
        for _, line, retained in self.lines:
            if retained:
                yield int(line["step"]) - before, line
                before = int(line["step"])


def goodput(
    events: Sequence[Record],
    metrics: Sequence[Record],
    superseded: Sequence[Record] = (),
    progress: Progress | None = None,
) -> dict[str, Any]:
    """Goodput of a run from its records.

    Args:
        superseded: lines of metrics of steps that were computed again.
        progress: of the latest start, the last step and its time.

    Returns:
        ``goodput`` (share, None before a start has lasted), ``wall_seconds`` (first start to last sign of life, time in
        the queue too), ``productive_seconds``, ``lost_seconds`` by cause (all of :data:`CAUSES`; with the productive
        ones they add up to the wall time), ``steps`` (retained), ``redone_steps``, ``starts``.
    """
    starts = _starts(events, metrics, superseded, progress)
    lost = dict.fromkeys(CAUSES, 0.0)
    usual = _usual_seconds(starts)
    for number_, start in enumerate(starts):
        if number_:
            lost["stopped"] += start.began - starts[number_ - 1].end
        ready = start.end if start.ready is None else start.ready
        lost["start_up"] += ready - start.began
        kept_until = start.kept_until()
        saves = sum(seconds for step, seconds in start.checkpoints if step <= start.kept)
        # A save comes after its step: the last one that counts lies in what else was for nothing.
        after = sum(seconds for step, seconds in start.checkpoints if step == start.kept < start.reached)
        lost["redo"] += max(0.0, start.end - kept_until - after)
        lost["checkpoint"] += saves
        for cause, seconds in _within_steps(start, usual).items():
            lost[cause] += seconds
    wall = starts[-1].end - starts[0].began if starts else 0.0
    productive = max(0.0, wall - sum(lost.values()))
    return {
        "goodput": productive / wall if wall > 0 else None,
        "wall_seconds": wall,
        "productive_seconds": productive,
        "lost_seconds": lost,
        "steps": starts[-1].reached if starts else 0,
        "redone_steps": sum(start.num_redone() for start in starts),
        "starts": len(starts),
    }


def goodput_of(run_directory: Path) -> dict[str, Any]:
    """:func:`goodput` of a run directory, also of a run that goes on or that died; nothing in it is changed."""
    return goodput(
        read_events(run_directory),
        read_metrics(run_directory),
        read_records(run_directory / SUPERSEDED_NAME),
        read_progress(run_directory),
    )


def goodput_facts(told: Mapping[str, Any]) -> list[tuple[str, str]]:
    """(label, text) for people, of what :func:`goodput` has told; the largest loss first."""
    wall = told["wall_seconds"]
    lost = sorted(((seconds, cause) for cause, seconds in told["lost_seconds"].items() if seconds), reverse=True)
    return [
        ("Goodput", f"{told['goodput']:.1%} of {format_seconds(wall)} since the first start"),
        ("Time lost to", ", ".join(f"{cause.replace('_', ' ')} {seconds / wall:.1%}" for seconds, cause in lost)),
        ("Steps computed again", f"{told['redone_steps']:,}"),
    ]


def _starts(
    events: Sequence[Record], metrics: Sequence[Record], superseded: Sequence[Record], progress: Progress | None
) -> list[_Start]:
    starts: list[_Start] = []
    stopped = False
    for event in events:
        name, when = event.get("event"), moment(event.get("time"))
        if when is None or name in OUTSIDE_EVENTS or name in _ENDS:
            continue
        if name in STARTING_EVENTS:
            _close(starts, event.get("reached"), moment(event.get("reached_at")))
            first_step = int(event.get("step") or 0)
            began = min(moment(event.get("began")) or when, when)
            # A process may be older than its run.
            began = max(began, starts[-1].end) if starts else began
            starts.append(_Start(first_step, began, max(began, when), reached=first_step))
            stopped = False
        elif starts and not stopped:
            _note(starts[-1], str(name), event, when)
            stopped = name == "stopped"  # what is noted later is no sign of life
    if not starts:
        return []
    if progress is not None:
        _close(starts, progress.step, progress.time)
    _hand_out(starts, metrics, retained=True)
    _hand_out(starts, superseded, retained=False)
    limit = math.inf
    for start in reversed(starts):
        start.lines.sort(key=lambda line: line[0])
        start.kept = int(min(start.reached, limit))
        limit = min(limit, start.first_step)
    return starts


def _note(start: _Start, name: str, event: Record, when: float) -> None:
    """An event in the life of a start."""
    start.end = max(start.end, when)
    if name == "training":
        start.ready = when
    if name == "checkpoint":
        start.checkpoints.append((int(event.get("step") or 0), number(event.get("stall_seconds")) or 0.0))


def _close(starts: Sequence[_Start], reached: Any, reached_at: float | None) -> None:
    """How far the latest start came, as the next one or the file of progress tells it."""
    if starts and isinstance(reached, int):
        starts[-1].reached = max(starts[-1].reached, reached)
        starts[-1].end = max(starts[-1].end, reached_at or 0.0)


def _hand_out(starts: Sequence[_Start], lines: Sequence[Record], retained: bool) -> None:
    """Give every line of metrics to the start that wrote it."""
    for line in lines:
        when, step = moment(line.get("time")), number(line.get("step"))
        if when is None or step is None:
            continue
        # Written between the start's event and the next one's; `began` of the next may lie before.
        place = bisect.bisect_right(starts, when, key=lambda start: start.began) - 1
        start = starts[max(place, 0)]
        start.lines.append((when, line, retained))
        start.end = max(start.end, when)
        start.reached = max(start.reached, int(step))


def _usual_seconds(starts: Sequence[_Start]) -> float | None:
    """What a step takes that is not among the first of a start, without its wait for data."""
    later = [line for start in starts for number_, (_, line) in enumerate(start.retained_lines()) if number_]
    seconds = [_computing_seconds(line) for line in later]
    return median(seconds) if seconds else None


def _computing_seconds(line: Record) -> float:
    """A step's seconds without validation, checkpoints and waits for data."""
    return (number(line.get("seconds_per_step")) or 0.0) - (number(line.get("time_data_wait")) or 0.0)


def _within_steps(start: _Start, usual_seconds: float | None) -> dict[str, float]:
    """What retained steps lost on the way."""
    lost = {"validation": 0.0, "data_wait": 0.0, "compile": 0.0}
    for number_, (num_steps, line) in enumerate(start.retained_lines()):
        for cause in ("validation", "data_wait"):
            lost[cause] += num_steps * (number(line.get(f"time_{cause}")) or 0.0)
        if number_ == 0 and usual_seconds is not None:
            lost["compile"] += num_steps * max(0.0, _computing_seconds(line) - usual_seconds)
    return lost
