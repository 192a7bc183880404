"""The report of whole, partial and broken runs."""

from __future__ import annotations

import math
import re
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import pytest

from pipeline.base.errors import UserError
from pipeline.monitor.json_lines import encode_line
from pipeline.monitor.report import render_report, wall_seconds, write_report


def write_metrics(run: Path, records: list[dict[str, Any]]) -> None:
    run.mkdir(parents=True, exist_ok=True)
    (run / "metrics.jsonl").write_bytes(b"".join(map(encode_line, records)))


def full_records(num_steps: int = 40) -> list[dict[str, Any]]:
    return [
        {
            "step": step,
            "loss": 8.0 - step / 10,
            "lr": 1e-4,
            "grad_norm": 1.0 + step % 3,
            "tokens": step * 1000,
            "tokens_per_second": 5e4,
            "mfu": 0.41,
            "data_wait_fraction": 0.01,
            "memory_gb": 3.0,
            "time": f"2026-01-01T00:00:{step:02d}.000+00:00",
            **({"validation_loss": 7.5, "validation_perplexity": 1808.0} if step % 20 == 0 else {}),
        }
        for step in range(1, num_steps + 1)
    ]


class Balance(HTMLParser):
    """Every tag that opens closes, in order."""

    def __init__(self) -> None:
        super().__init__()
        self.open: list[str] = []
        self.resources: list[str] = []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.resources += [f"{name}={value}" for name, value in attrs if name in ("src", "href", "data")]
        if tag not in ("meta",):
            self.open.append(tag)

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        pass


def checked(html: str) -> str:
    parser = Balance()
    parser.feed(html)
    parser.close()
    assert parser.open == []
    assert parser.resources == []
    assert "http" not in re.sub(r"http-equiv", "", html)
    return html


def test_a_whole_run(tmp_path: Path) -> None:
    run = tmp_path / "my <run>"
    write_metrics(run, full_records())
    events = [
        {"time": "2026-01-01T00:00:00.000+00:00", "event": "started", "step": 0, "world_size": 2},
        {"time": "2026-01-01T00:00:00.000+00:00", "event": "training", "step": 0},
        {
            "time": "2026-01-01T00:00:30.000+00:00",
            "event": "resumed",
            "step": 20,
            "reason": "<b>",
            "reached": 30,
            "reached_at": "2026-01-01T00:00:30.000+00:00",
        },
        {"time": "2026-01-01T00:00:34.000+00:00", "event": "training", "step": 20},
    ]
    (run / "events.jsonl").write_bytes(b"".join(map(encode_line, events)))
    (run / "config.yaml").write_text("train: {steps: 40000, strategy: zero1}\nmodel: {family: bert}\nseed: 3\n")
    path = write_report(run)
    assert path == run / "report.html"
    html = checked(path.read_text())
    assert html.count("<svg") == 5
    for text in (
        "Run my &lt;run&gt;",
        "step 40 of 40,000, last logged 2026-01-01 00:00:40 UTC",
        "<th>Strategy</th><td>zero1</td>",
        "<th>Restarts</th><td>1</td>",
        "<th>Goodput</th><td>65.0% of 0:40 since the first start</td>",
        "<th>Time lost to</th><td>redo 25.0%, start up 10.0%</td>",
        "<th>Steps computed again</th><td>10</td>",
        "<th>Tokens trained on</th><td>40,000</td>",
        "7.9000 → 4.0000",
        "reason=&lt;b&gt;",
        'class="mark"',
        "1,808.0",
    ):
        assert text in html, text


def test_where_the_time_went_weighs_lines_by_their_steps() -> None:
    lines = [
        {"step": 1, "loss": 3.0, "time_forward": 4.0, "time_logging": None},
        {"step": 5, "loss": 2.0, "time_forward": 1.0, "time_data_wait": 0.5, "time_logging": "nan"},
    ]
    assert "forward 80.0%, data wait 20.0%" in render_report("run", lines, [], {})
    assert "Where the time went" not in render_report("run", [{"step": 1, "loss": 3.0}], [], {})


def test_a_loss_of_several_terms_is_called_their_sum_and_each_has_a_chart() -> None:
    lines = [
        {"step": step, "loss": 7.0, "loss_mlm": 6.0, "loss_nsp": 0.6 + step / 10, "loss_scale": 65536.0}
        for step in (1, 2, 3)
    ]
    lines[-1] |= {"validation_loss": 6.9, "validation_loss_mlm": 6.2, "validation_loss_nsp": 0.7}
    html = checked(render_report("run", lines, [], {}))
    assert "nats, weighted sum of the terms" in html
    assert "nats per prediction" not in html
    assert "<figcaption>Loss, mlm</figcaption>" in html
    assert "<figcaption>Loss, nsp</figcaption>" in html
    assert "Loss, scale" not in html
    assert html.count("<svg") == 3
    plain = render_report("run", [{"step": 1, "loss": 7.0, "loss_scale": 65536.0}], [], {})
    assert "nats per prediction" in plain
    assert "Loss, " not in plain


def test_the_objectives_of_a_mixture_have_their_labels() -> None:
    lines = [
        {"step": 1, "loss": 7.0, "loss_mlm": 7.0},
        {"step": 2, "loss": 6.0, "loss_dense": 6.0},
        {"step": 3, "loss": 5.5, "loss_mlm": 5.5, "validation_loss": 5.0, "validation_loss_mlm": 5.0},
    ]
    tasks = [{"name": "mlm", "weight": 2.0, "label": None}, {"name": "mlm", "weight": 1.0, "label": "dense"}]
    html = checked(render_report("run", lines, [], {"objective": {"name": "mlm", "mixture": tasks}}))
    assert "<th>Objective</th><td>mlm (weight 2), dense (weight 1)</td>" in html
    assert "training: of the step&#x27;s objective" in html
    assert "<figcaption>Loss, mlm</figcaption>" in html
    assert "<figcaption>Loss, dense</figcaption>" in html


def test_one_point_and_nothing_else(tmp_path: Path) -> None:
    write_metrics(tmp_path, [{"step": 1, "loss": 9.0}])
    html = checked(write_report(tmp_path, tmp_path / "elsewhere" / "page.html").read_text())
    assert html.count("<svg") == 1
    assert html.count("No numbers yet.") == 3
    assert not (tmp_path / "report.html").exists()


def test_nulls_and_not_a_number(tmp_path: Path) -> None:
    records = full_records()
    records[10]["loss"] = math.nan
    records[12]["grad_norm"] = math.inf
    records[13]["grad_norm"] = None
    for record in records:
        record["mfu"] = None
    write_metrics(tmp_path, records)
    html = checked(write_report(tmp_path).read_text())
    assert "<th>Steps with a loss that is no number</th><td>1, first at step 11</td>" in html
    assert html.count("<svg") == 4


def test_a_partial_run_with_a_torn_line_and_a_broken_config(tmp_path: Path) -> None:
    write_metrics(tmp_path, full_records(5))
    with open(tmp_path / "metrics.jsonl", "ab") as file:
        file.write(b'{"step": 6, "lo')
    (tmp_path / "config.yaml").write_text("train: {steps: [")
    html = checked(write_report(tmp_path).read_text())
    assert "step 5, last logged" in html


def test_many_events_show_the_last_ones() -> None:
    events = [{"time": "2026-01-01T00:00:00+00:00", "event": "skip", "step": step} for step in range(1000)]
    html = checked(render_report("run", full_records(3), events, {}))
    assert "Events (last 300 of 1000)" in html
    assert html.count("<td>skip</td>") == 300


def test_a_report_can_be_drawn_again(tmp_path: Path) -> None:
    write_metrics(tmp_path, full_records(3))
    write_report(tmp_path)
    write_metrics(tmp_path, full_records(9))
    assert "step 9" in write_report(tmp_path).read_text()


def test_wall_time_leaves_out_the_time_between_stretches() -> None:
    def at(minute: int) -> str:
        return f"2026-01-01T10:{minute:02d}:00+00:00"

    metrics = [{"step": s, "time": at(m)} for s, m in ((1, 1), (2, 2), (3, 31), (4, 34))]
    events = [
        {"event": "started", "time": at(0)},
        {"event": "checkpoint", "time": at(3)},
        {"event": "exported", "time": at(20)},
        {"event": "config_changed", "time": at(29)},
        {"event": "resumed", "time": at(30)},
    ]
    assert wall_seconds(metrics, events) == (3 + 4) * 60
    assert wall_seconds(metrics, []) == 33 * 60
    assert wall_seconds([{"step": 1}], []) is None


def test_errors_tell_what_to_do(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"report: .*absent is no directory\. Give the run_directory of a training run"):
        write_report(tmp_path / "absent")
    with pytest.raises(UserError, match=r"report: .*metrics\.jsonl has no metrics yet\. .*monitor\.log_every_steps"):
        write_report(tmp_path)
    write_metrics(tmp_path, full_records(2))
    with pytest.raises(UserError, match=r"report: .* is a directory\. Give the path of a file, e\.g\. .*report\.html"):
        write_report(tmp_path, tmp_path)
