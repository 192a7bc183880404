"""Charts: round ticks, honest gaps, and nothing that breaks a page."""

from __future__ import annotations

import json
import math
import random
import re
import xml.etree.ElementTree as ElementTree

import pytest

from pipeline.monitor.charts import Chart, Series, line_chart, log_ticks, nice_ticks, thin, tick_label


def svg_of(html: str) -> ElementTree.Element:
    found = re.search(r"<svg.*</svg>", html, re.S)
    assert found, html
    return ElementTree.fromstring(found.group())


def elements(html: str, css_class: str) -> list[ElementTree.Element]:
    return [e for e in svg_of(html).iter() if css_class in e.attrib.get("class", "").split()]


def hover_numbers(html: str) -> list[list[float]]:
    source = re.search(r'<script type="application/json">(.*?)</script>', html, re.S)
    assert source
    return [point for series in json.loads(source.group(1))["series"] for point in series["points"]]


def test_ticks_are_round_evenly_spaced_and_inside() -> None:
    generator = random.Random(0)
    for _ in range(500):
        low = generator.uniform(-1, 1) * 10 ** generator.randint(-6, 9)
        high = low + 10 ** generator.uniform(-3, 9)
        ticks = nice_ticks(low, high)
        assert 2 <= len(ticks) <= 7
        step = ticks[1] - ticks[0]
        slack = 1e-6 * step + 1e-12 * abs(low)
        assert low - slack <= ticks[0] <= ticks[-1] <= high + slack
        labels = [tick_label(tick, step, max(map(abs, ticks))) for tick in ticks]
        if abs(low) < 1e4 * step:  # otherwise no short label could tell them apart
            assert len(set(labels)) == len(labels), (ticks, labels)


def test_ticks_known_by_hand() -> None:
    assert nice_ticks(0, 10) == [0, 2, 4, 6, 8, 10]
    assert [tick_label(t, 2.5e-5, 1e-4) for t in (0, 2.5e-5, 1e-4)] == ["0", "2.5e-5", "1e-4"]
    assert [tick_label(t, 5000, 20_000) for t in (5000, 20_000)] == ["5k", "20k"]
    assert [tick_label(t, 0.25, 1.5) for t in (0.25, 1.5)] == ["0.25", "1.5"]
    assert tick_label(2_500_000_000, 5e8, 2.5e9) == "2500M"
    assert log_ticks(0.9, 60) == [1, 2, 5, 10, 20, 50]
    assert log_ticks(0.01, 1000) == pytest.approx([0.01, 0.1, 1, 10, 100, 1000])


def test_thinning_keeps_extremes_and_breaks() -> None:
    points: list[tuple[float, float | None]] = [(float(x), math.sin(x / 500)) for x in range(50_000)]
    points[31_234] = (31_234.0, 99.0)
    points[40_000] = (40_000.0, None)
    points[41_000] = (41_000.0, math.nan)
    kept = thin(points, 1000)
    assert len(kept) <= 1002
    assert points[31_234] in kept
    assert (40_000.0, None) in kept
    assert sum(not (y is not None and math.isfinite(y)) for _, y in kept) == 2
    assert kept == sorted(kept, key=lambda point: point[0])
    assert thin(points[:10], 1000) == points[:10]


def test_a_line_has_axes_labels_and_its_numbers() -> None:
    html = line_chart(Chart("Loss", "nats", [Series("training", [(1, 3.0), (2, 2.0), (3, 1.5)])]))
    assert len(elements(html, "line")) == 1
    assert [e.text for e in elements(html, "label")] == ["step", "nats"]
    assert len(elements(html, "tick")) >= 6
    assert [point[:2] for point in hover_numbers(html)] == [[1, 3.0], [2, 2.0], [3, 1.5]]
    assert "legend" not in html


def test_a_gap_breaks_a_dense_line_and_not_a_sparse_one() -> None:
    points = [(1, 3.0), (2, 2.5), (3, None), (4, 2.0), (5, math.nan), (6, 1.0), (7, 0.5)]
    dense = line_chart(Chart("a", "b", [Series("s", points)]))
    assert elements(dense, "line")[0].attrib["d"].count("M") == 2
    assert len(elements(dense, "dot")) == 1  # step 4 stands alone
    sparse = line_chart(Chart("a", "b", [Series("s", points, sparse=True)]))
    assert elements(sparse, "line")[0].attrib["d"].count("M") == 1
    assert len(elements(sparse, "dot")) == 5


@pytest.mark.parametrize("value", [0.0, 5.0, -3.0, 1e-9, 1e12])
@pytest.mark.parametrize("from_zero", [True, False])
def test_one_point_is_a_dot_inside_the_picture(value: float, from_zero: bool) -> None:
    html = line_chart(Chart("a", "b", [Series("s", [(7, value)])], from_zero=from_zero))
    (dot,) = elements(html, "dot")
    assert 66 <= float(dot.attrib["cx"]) <= 624
    assert 14 <= float(dot.attrib["cy"]) <= 254
    assert elements(html, "line") == []
    assert [e.text for e in elements(html, "tick")][-3:] == ["6", "7", "8"]


def test_no_numbers_say_so() -> None:
    for points in ([], [(1, None)], [(1, math.nan), (2, math.inf)]):
        html = line_chart(Chart("a", "b", [Series("s", points)]))
        assert "No numbers yet." in html
        assert "<svg" not in html


def test_spikes_bring_a_logarithmic_axis() -> None:
    points = [(float(x), 1.0) for x in range(100)] + [(100.0, 5000.0)]
    html = line_chart(Chart("a", "norm", [Series("s", points)]))
    assert "norm, log scale" in [e.text for e in elements(html, "label")]
    flat = line_chart(Chart("a", "norm", [Series("s", points[:100])]))
    assert "norm" in [e.text for e in elements(flat, "label")]


def test_marks_outside_the_curve_are_left_out_and_two_lines_have_a_legend() -> None:
    lines = [Series("one", [(10, 1.0), (20, 2.0)]), Series("two", [(15, 1.5)], sparse=True)]
    html = line_chart(Chart("a", "b", lines, marks=(5, 12, 30)))
    assert len(elements(html, "mark")) == 1
    assert html.count('<i class="s') == 2


def test_text_cannot_break_out_of_the_page() -> None:
    evil = "</script><script>alert(1)</script>"
    html = line_chart(Chart(evil, evil, [Series(evil, [(1, 1.0)]), Series("b", [(1, 1.0)])], x_label=evil))
    assert "<script>alert" not in html
    assert html.count("</script>") == 1
    svg_of(html)
