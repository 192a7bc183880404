"""``report.html``: the curves and facts of a run in one file, also of a run that is not over or that died."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from pipeline.base.errors import UserError
from pipeline.base.files import write_bytes_atomically
from pipeline.monitor.charts import Chart, Point, Series, line_chart
from pipeline.monitor.events import OUTSIDE_EVENTS, STARTING_EVENTS, read_events
from pipeline.monitor.goodput import goodput_facts, goodput_of
from pipeline.monitor.json_lines import Record, moment, number
from pipeline.monitor.meters import format_count, format_seconds
from pipeline.monitor.report_page import page, table
from pipeline.monitor.sinks import METRICS_NAME, read_metrics, terms_of
from pipeline.monitor.step_clock import PHASES

_MOST_EVENTS = 300

_ACCURACY = "validation_accuracy_"

_CONFIG_FACTS = (
    ("Corpus", "data.corpus"),
    ("Sequence length", "data.sequence_length"),
    ("Packing", "data.packing"),
    ("Model family", "model.family"),
    ("Model type", "model.config.model_type"),
    ("Layers", "model.num_layers"),
    ("Hidden size", "model.hidden_size"),
    ("Attention heads", "model.num_heads"),
    ("Objective", "objective.name"),
    ("Optimizer", "optimizer.name"),
    ("Peak learning rate", "optimizer.learning_rate"),
    ("Weight decay", "optimizer.weight_decay"),
    ("Schedule", "schedule.name"),
    ("Warmup steps", "schedule.warmup_steps"),
    ("Steps", "train.steps"),
    ("Global batch (rows)", "train.global_batch_size"),
    ("Strategy", "train.strategy"),
    ("Precision", "train.precision"),
    ("Seed", "seed"),
)

_SHAPE_KEYS = ("model.num_layers", "model.hidden_size", "model.num_heads")


def write_report(run_directory: Path, output: Path | None = None) -> Path:
    """Draw loss, validation loss, learning rate, gradient norm and throughput of a run into one HTML file.

    Args:
        output: default ``report.html`` in the run directory; a report that is there is replaced.

    Returns:
        The path written.

    Raises:
        UserError: no such run, no metrics yet, or ``output`` is a directory.
    """
    if not run_directory.is_dir():
        raise UserError(f"report: {run_directory} is no directory. Give the run_directory of a training run.")
    metrics = read_metrics(run_directory)
    if not metrics:
        raise UserError(
            f"report: {run_directory / METRICS_NAME} has no metrics yet. Give the run_directory of a training run that "
            "has logged a step (monitor.log_every_steps says how often it does)."
        )
    path = output if output is not None else run_directory / "report.html"
    if path.is_dir():
        raise UserError(f"report: {path} is a directory. Give the path of a file, e.g. {path / 'report.html'}.")
    html = render_report(
        run_directory.resolve().name,
        metrics,
        read_events(run_directory),
        _config(run_directory),
        goodput_of(run_directory),
    )
    write_bytes_atomically(path, html.encode())
    return path


def render_report(
    name: str,
    metrics: Sequence[Record],
    events: Sequence[Record],
    config: Mapping[str, Any],
    goodput: Mapping[str, Any] | None = None,
) -> str:
    """The page of a run from its records (at least one metric line); pure.

    Args:
        goodput: from :func:`pipeline.monitor.goodput.goodput`.
    """
    goodput = goodput if goodput and goodput["goodput"] is not None else None
    resumed_at = sorted({step for e in events if e.get("event") == "resumed" and (step := number(e.get("step")))})
    last, total_steps = metrics[-1], _lookup(config, "train.steps")
    done = f"step {int(last['step']):,}" + (f" of {int(total_steps):,}" if isinstance(total_steps, int) else "")
    tables = '<p class="note">Dashed lines: the run was resumed.</p>' if resumed_at else ""
    tables += "<h2>Facts</h2>" + table(_facts(metrics, events, config, goodput))
    if events:
        shown = list(events)[-_MOST_EVENTS:]
        left_out = f" (last {len(shown)} of {len(events)})" if len(shown) < len(events) else ""
        tables += f"<h2>Events{left_out}</h2>" + table(
            [_event_row(event) for event in shown], header=("time (UTC)", "event", "step", "facts")
        )
    until = f", last logged {_clock_text(last['time'])} UTC" if isinstance(last.get("time"), str) else ""
    return page(
        title=f"Run {name}",
        subtitle=done + until,
        tiles=_tiles(metrics, events, goodput),
        charts=[line_chart(chart) for chart in _charts(metrics, resumed_at, bool(_mixture(config)))],
        tables=tables,
    )


def _charts(metrics: Sequence[Record], resumed_at: Sequence[float], is_mixture: bool) -> list[Chart]:
    def series(name: str, key: str, scale: float = 1.0, sparse: bool = False) -> Series:
        points: list[Point] = []
        for record in metrics:
            value = number(record.get(key))
            # A line of validation alone has no training loss: that is no gap in the training curve.
            if key in record or sparse:
                points.append((float(record["step"]), None if value is None else value * scale))
        return Series(name, points, sparse)

    def loss(name: str, label: str, suffix: str = "") -> Chart:
        # A step of a mixture has the loss of one objective: the lines join what lies between.
        both = [
            series("training", f"loss{suffix}", sparse=is_mixture and bool(suffix)),
            series("validation", f"validation_loss{suffix}", sparse=True),
        ]
        return Chart(name, label, both, marks=resumed_at)

    terms = list(dict.fromkeys(name for record in metrics for name in _terms(record)))
    label = "nats per prediction"
    if is_mixture:
        label = "nats, training: of the step's objective"
    elif terms:
        label = "nats, weighted sum of the terms"
    charts = [
        loss("Loss", label),
        *(loss(f"Loss, {name}", "nats, mean", f"_{name}") for name in terms),
        Chart("Learning rate", "learning rate", [series("learning rate", "lr")], from_zero=True, marks=resumed_at),
        Chart(
            "Gradient norm",
            "global norm before clipping",
            [series("gradient norm", "grad_norm")],
            from_zero=True,
            marks=resumed_at,
        ),
        Chart(
            "Throughput",
            "tokens per second",
            [series("tokens/s", "tokens_per_second")],
            from_zero=True,
            marks=resumed_at,
        ),
    ]
    if _values(metrics, "mfu"):
        charts.append(Chart("Model FLOPs utilization", "% of peak", [series("MFU", "mfu", 100.0)], from_zero=True))
    return charts


def _terms(record: Record) -> list[str]:
    """Names of the terms and objectives whose losses a line has."""
    return [*terms_of(record, "loss_"), *terms_of(record, "validation_loss_")]


def _values(metrics: Sequence[Record], key: str) -> list[float]:
    """The finite values of a key, in order."""
    found = (number(record.get(key)) for record in metrics)
    return [value for value in found if value is not None and math.isfinite(value)]


def _tiles(
    metrics: Sequence[Record], events: Sequence[Record], goodput: Mapping[str, Any] | None
) -> list[tuple[str, str]]:
    tiles = []
    for label, key, form in (
        ("Training loss", "loss", "{:.3f}"),
        ("Validation loss", "validation_loss", "{:.3f}"),
        ("Validation perplexity", "validation_perplexity", "{:,.1f}"),
    ):
        if values := _values(metrics, key):
            tiles.append((label, form.format(values[-1])))
    for key in dict.fromkeys(name for record in metrics for name in record if name.startswith(_ACCURACY)):
        if values := _values(metrics, key):
            tiles.append((f"Validation accuracy, {key.removeprefix(_ACCURACY)}", f"{values[-1]:.1%}"))
    if tokens := _values(metrics, "tokens"):
        tiles.append(("Tokens", format_count(tokens[-1])))
    if rates := _values(metrics, "tokens_per_second"):
        tiles.append(("Tokens/s (median)", format_count(sorted(rates)[len(rates) // 2])))
    seconds = wall_seconds(metrics, events)
    if seconds is not None:
        tiles.append(("Wall time", format_seconds(seconds)))
    if goodput is not None:
        tiles.append(("Goodput", f"{goodput['goodput']:.1%}"))
    return tiles


def _facts(
    metrics: Sequence[Record],
    events: Sequence[Record],
    config: Mapping[str, Any],
    goodput: Mapping[str, Any] | None,
) -> list[tuple[str, str]]:
    facts: list[tuple[str, str]] = []
    if losses := _values(metrics, "loss"):
        facts.append(("Training loss, first and last logged", f"{losses[0]:.4f} → {losses[-1]:.4f}"))
    if validation := _values(metrics, "validation_loss"):
        facts.append(("Validation loss, best and last", f"{min(validation):.4f}, {validation[-1]:.4f}"))
    broken = [r for r in metrics if (v := number(r.get("loss"))) is not None and not math.isfinite(v)]
    if broken:
        facts.append(("Steps with a loss that is no number", f"{len(broken)}, first at step {broken[0]['step']}"))
    if tokens := _values(metrics, "tokens"):
        facts.append(("Tokens trained on", f"{int(tokens[-1]):,}"))
    if waits := _values(metrics, "data_wait_fraction"):
        facts.append(("Time waiting for data (mean)", f"{100 * sum(waits) / len(waits):.2f} %"))
    if shares := _time_shares(metrics):
        facts.append(("Where the time went, rank 0", ", ".join(f"{name} {share:.1%}" for name, share in shares)))
    if goodput is not None:
        facts += goodput_facts(goodput)
    if memory := _values(metrics, "memory_gb"):
        facts.append(("Memory, most on rank 0", f"{max(memory):.2f} GB"))
    facts.append(("Restarts", str(sum(event.get("event") == "resumed" for event in events))))
    is_named = _lookup(config, "model.config.model_type") is not None  # then the fields of the shape say nothing
    for label, key in _CONFIG_FACTS:
        value = _lookup(config, key)
        if key == "objective.name" and (tasks := _mixture(config)):
            value = ", ".join(f"{task.get('label') or task['name']} (weight {task['weight']:g})" for task in tasks)
        if value is not None and not (is_named and key in _SHAPE_KEYS):
            facts.append((label, f"{value:,}" if isinstance(value, int) and abs(value) >= 10_000 else str(value)))
    return facts


def _time_shares(metrics: Sequence[Record]) -> list[tuple[str, float]]:
    """Phases that took time with their shares of all logged steps, the largest first."""
    seconds = dict.fromkeys(PHASES, 0.0)
    before = 0.0
    for record in metrics:
        step = float(record["step"])
        for phase in PHASES:
            # A line's times are means over the steps since the line before; a run that resumes may repeat some.
            value = number(record.get(f"time_{phase}"))
            if value is not None and math.isfinite(value):
                seconds[phase] += value * max(step - before, 1.0)
        before = step
    total = sum(seconds.values())
    taken = [(phase.replace("_", " "), time / total) for phase, time in seconds.items() if time]
    return sorted(taken, key=lambda item: item[1], reverse=True)


def wall_seconds(metrics: Sequence[Record], events: Sequence[Record]) -> float | None:
    """Seconds the run was at work: each stretch from a start or resume to the last record before the next one."""
    moments = [(when, False) for record in metrics if (when := moment(record.get("time"))) is not None]
    moments += [
        (when, event.get("event") in STARTING_EVENTS)
        for event in events
        if event.get("event") not in OUTSIDE_EVENTS and (when := moment(event.get("time"))) is not None
    ]
    if not moments:
        return None
    moments.sort()
    total, (begin, _), latest = 0.0, moments[0], moments[0][0]
    for when, starts in moments[1:]:
        if starts:
            total += latest - begin
            begin = when
        latest = when
    return total + latest - begin


def _clock_text(time: str) -> str:
    return time[:19].replace("T", " ")


def _event_row(event: Record) -> tuple[str, str, str, str]:
    facts = ", ".join(f"{key}={value}" for key, value in event.items() if key not in ("time", "event", "step"))
    step = event.get("step")
    when = _clock_text(str(event.get("time", "")))
    return when, str(event.get("event", "")).replace("_", " "), "" if step is None else str(step), facts


def _config(run_directory: Path) -> Mapping[str, Any]:
    """``config.yaml`` as nested dicts. A report is drawn without one, too: of copied metrics, or of a broken run."""
    import yaml

    path = run_directory / "config.yaml"
    if not path.exists():
        return {}
    try:
        config = yaml.safe_load(path.read_text())
    except (yaml.YAMLError, UnicodeDecodeError):
        return {}
    return config if isinstance(config, dict) else {}


def _mixture(config: Mapping[str, Any]) -> list[Mapping[str, Any]]:
    """The objectives that take turns; none where there is only one."""
    return _lookup(config, "objective.mixture") or []


def _lookup(config: Mapping[str, Any], dotted: str) -> Any:
    value: Any = config
    for part in dotted.split("."):
        value = value.get(part) if isinstance(value, Mapping) else None
    return value
