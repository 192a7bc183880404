"""The frame of a report: one HTML page that needs nothing from outside. Pure: text in, text out."""

from __future__ import annotations

from collections.abc import Sequence
from html import escape

_STYLE = """
:root { color-scheme: light dark; --page: #f6f6f4; --card: #ffffff; --ink: #1b1b1a; --quiet: #62615d; --rule: #e3e2de;
  --axis: #b9b8b2; --s0: #2a6fd0; --s1: #d9661f; --mark: #9a9993; }
@media (prefers-color-scheme: dark) { :root { --page: #141413; --card: #1e1e1c; --ink: #f2f1ee; --quiet: #a9a8a2;
  --rule: #32312e; --axis: #5b5a55; --s0: #5b9bee; --s1: #ee8a4b; --mark: #74736d; } }
* { box-sizing: border-box; }
body { margin: 0; padding: 28px clamp(16px, 4vw, 48px) 48px; background: var(--page); color: var(--ink);
  font: 15px/1.5 system-ui, -apple-system, "Segoe UI", Roboto, sans-serif; }
main { max-width: 1360px; margin: 0 auto; }
h1 { font-size: 24px; margin: 0; overflow-wrap: anywhere; } h2 { font-size: 17px; margin: 32px 0 10px; }
.sub { color: var(--quiet); margin: 2px 0 18px; }
.tiles { display: grid; grid-template-columns: repeat(auto-fill, minmax(175px, 1fr)); gap: 12px; margin: 0 0 16px; }
.tile, .chart, .table { background: var(--card); border: 1px solid var(--rule); border-radius: 10px; }
.tile { padding: 12px 14px; } .tile b { display: block; font-size: 21px; font-weight: 600; line-height: 1.25; }
.tile span { color: var(--quiet); font-size: 13px; }
.charts { display: grid; grid-template-columns: repeat(auto-fit, minmax(min(100%, 460px), 1fr)); gap: 14px; }
.chart { position: relative; margin: 0; padding: 14px 12px 6px; }
figcaption { font-weight: 600; padding-left: 6px; } .empty { color: var(--quiet); padding-left: 6px; }
.legend { position: absolute; right: 18px; top: 15px; font-size: 13px; color: var(--quiet); }
.legend span { margin-left: 14px; }
.legend i { display: inline-block; width: 14px; height: 3px; border-radius: 2px; margin-right: 6px;
  vertical-align: middle; }
svg { display: block; width: 100%; height: auto; }
.grid { stroke: var(--rule); } .axis { stroke: var(--axis); } .mark { stroke: var(--mark); stroke-dasharray: 3 4; }
.tick, .label { fill: var(--quiet); font-size: 12px; } .tick { font-variant-numeric: tabular-nums; }
.line { fill: none; stroke-width: 2; stroke-linejoin: round; stroke-linecap: round; }
.dot { stroke: var(--card); stroke-width: 1.5; }
.line.s0 { stroke: var(--s0); } .line.s1 { stroke: var(--s1); }
.dot.s0 { fill: var(--s0); } .dot.s1 { fill: var(--s1); }
i.s0 { background: var(--s0); } i.s1 { background: var(--s1); }
.cursor { stroke: var(--axis); visibility: hidden; }
.tip { position: absolute; pointer-events: none; display: none; background: var(--card); color: var(--ink);
  border: 1px solid var(--axis); border-radius: 6px; padding: 4px 9px; font-size: 13px; white-space: nowrap;
  font-variant-numeric: tabular-nums; }
.table { overflow-x: auto; } table { border-collapse: collapse; width: 100%; font-size: 14px; }
td, th { text-align: left; padding: 6px 14px; border-top: 1px solid var(--rule); vertical-align: top; }
tr:first-child > * { border-top: 0; } th { color: var(--quiet); font-weight: 500; white-space: nowrap; }
td { overflow-wrap: anywhere; font-variant-numeric: tabular-nums; } .time { white-space: nowrap; }
.facts th { width: 300px; } .note { color: var(--quiet); font-size: 13px; margin: 8px 2px 0; }
"""

_SCRIPT = """
for (const figure of document.querySelectorAll('figure.chart')) {
  const source = figure.querySelector('script'), svg = figure.querySelector('svg');
  if (!source || !svg) continue;
  const data = JSON.parse(source.textContent), tip = figure.querySelector('.tip');
  const cursor = figure.querySelector('.cursor'), width = svg.viewBox.baseVal.width;
  const nearest = (points, x) => points.reduce((a, b) => Math.abs(b[2] - x) < Math.abs(a[2] - x) ? b : a);
  svg.addEventListener('pointermove', (event) => {
    const box = svg.getBoundingClientRect(), outer = figure.getBoundingClientRect();
    const x = (event.clientX - box.left) * width / box.width;
    const at = nearest(data.series.flatMap((series) => series.points), x);
    cursor.setAttribute('x1', at[2]); cursor.setAttribute('x2', at[2]); cursor.style.visibility = 'visible';
    const lines = [data.x + ' ' + at[0].toLocaleString('en')];
    for (const series of data.series) {
      const point = series.points.find((p) => p[0] === at[0]);
      if (point) lines.push(series.name + ' ' + Number(point[1].toPrecision(5)));
    }
    tip.replaceChildren(...lines.map((text) => Object.assign(document.createElement('div'), {textContent: text})));
    tip.style.display = 'block';
    const left = box.left - outer.left + at[2] * box.width / width;
    tip.style.left = (left + 12 + tip.offsetWidth > outer.width ? left - 12 - tip.offsetWidth : left + 12) + 'px';
    tip.style.top = (event.clientY - outer.top - 16) + 'px';
  });
  svg.addEventListener('pointerleave', () => { tip.style.display = 'none'; cursor.style.visibility = 'hidden'; });
}
"""


def table(rows: Sequence[Sequence[str]], header: Sequence[str] = ()) -> str:
    """Rows of plain text, escaped; without a header the first cell of each row names it."""
    lines = []
    if header:
        lines.append("<tr>" + "".join(f"<th>{escape(cell)}</th>" for cell in header) + "</tr>")
    for row in rows:
        first = f'<td class="time">{escape(row[0])}</td>' if header else f"<th>{escape(row[0])}</th>"
        lines.append(f"<tr>{first}" + "".join(f"<td>{escape(cell)}</td>" for cell in row[1:]) + "</tr>")
    kind = "table" if header else "table facts"
    return f'<div class="{kind}"><table>{"".join(lines)}</table></div>'


def page(title: str, subtitle: str, tiles: Sequence[tuple[str, str]], charts: Sequence[str], tables: str) -> str:
    """The whole document. ``charts`` and ``tables`` are HTML already; the rest is plain text and is escaped here."""
    tiles_html = "".join(
        f'<div class="tile"><span>{escape(name)}</span><b>{escape(value)}</b></div>' for name, value in tiles
    )
    return f"""<!DOCTYPE html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
<title>{escape(title)}</title>
<style>{_STYLE}</style>
</head>
<body>
<main>
<h1>{escape(title)}</h1>
<p class="sub">{escape(subtitle)}</p>
<div class="tiles">{tiles_html}</div>
<div class="charts">{"".join(charts)}</div>
{tables}
</main>
<script>{_SCRIPT}</script>
</body>
</html>
"""
