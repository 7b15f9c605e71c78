"""The page over all series: one HTML file that needs nothing else, however many series there are."""

from __future__ import annotations

import html
import shlex
from collections.abc import Iterator
from urllib.parse import quote

import numpy as np

from inrtomo.batch.state import DONE, FAILED
from inrtomo.batch.summary import Row, Summary, alike, shown

PLOT = (900, 150, 60)
"""Width and height of a plot and its left margin, in px."""
DOT = 3.0
RANGE_OF_USUAL = (2.0, 98.0)
"""Percentiles between which a plot's scale is set; what lies far beyond is drawn at the edge."""

STYLE = """
body { font: 15px/1.45 system-ui, sans-serif; margin: 2em auto; max-width: 75em; padding: 0 1em; color: #1c2733; }
h1 { font-size: 1.5em; margin-bottom: 0 } h2 { font-size: 1.15em; margin-top: 2em } code { font-size: 90% }
table { border-collapse: collapse; width: 100% } th, td { text-align: left; padding: .2em .7em .2em 0 }
th { border-bottom: 2px solid #9aa7b4; cursor: pointer; position: sticky; top: 0; background: #fff }
td { border-bottom: 1px solid #e3e8ed; vertical-align: top } td.n { font-variant-numeric: tabular-nums }
.failed, .out { color: #b3261e; font-weight: 600 } .done { color: #1c7a3d } .other { color: #7a5b00 }
pre { background: #f3f5f7; padding: .7em; overflow-x: auto; font-size: 85% } summary { cursor: pointer }
input { font: inherit; padding: .2em .5em; width: 20em; margin-bottom: .5em } svg { display: block; max-width: 100% }
.bar { display: flex; height: .8em; margin: 1em 0; background: #e3e8ed } .bar div { height: 100% }
"""
SCRIPT = """
const body = document.querySelector('#all tbody');
document.querySelector('#filter').addEventListener('input', e => {
  const wanted = e.target.value.toLowerCase();
  for (const row of body.rows) row.hidden = !row.textContent.toLowerCase().includes(wanted);
});
document.querySelectorAll('#all th').forEach((th, k) => th.addEventListener('click', () => {
  const up = th.dataset.up = th.dataset.up === '1' ? '0' : '1';
  const value = row => row.cells[k].dataset.v ?? row.cells[k].textContent;
  const order = (a, b) => {
    const x = value(a), y = value(b);
    if (x === '' || y === '') return (x === '') - (y === '');
    return (isNaN(x) || isNaN(y) ? x.localeCompare(y, undefined, {numeric: true}) : x - y) * (up === '1' ? 1 : -1);
  };
  body.append(...[...body.rows].sort(order));
}));
"""


def page(summary: Summary, when: str) -> str:
    """The whole page; links are to files beside it."""
    batch = summary.batch
    title = html.escape(f"inr-{batch.step}: {batch.path.name}")
    options = f"with <code>{html.escape(shlex.join(batch.options))}</code>" if batch.options else "with its defaults"
    return "".join(
        [
            f'<!DOCTYPE html>\n<html lang="en"><head><meta charset="utf-8"><title>{title}</title>\n',
            f"<style>{STYLE}</style></head><body>\n<h1>{title}</h1>\n",
            f"<p>{html.escape(summary.line())}; {options}, as of {when}.</p>\n",
            _bar(summary),
            *_failures(summary),
            *_outliers(summary),
            *_plots(summary),
            *_table(summary),
            f"<script>{SCRIPT}</script></body></html>\n",
        ]
    )


def _bar(summary: Summary) -> str:
    n = max(1, len(summary.rows))
    parts = ((DONE, "#4caf72"), (FAILED, "#d0453b"))
    pieces = (f'<div style="width:{100 * summary.count[s] / n:.2f}%;background:{c}"></div>' for s, c in parts)
    return f'<div class="bar">{"".join(pieces)}</div>\n'


def _failures(summary: Summary) -> Iterator[str]:
    if not summary.failed:
        return
    yield f"<h2>Failed: {len(summary.failed)}</h2>\n"
    for group in alike(summary.failed):
        more = f" <b>({len(group)} series)</b>" if len(group) > 1 else ""
        yield f'<details><summary><span class="failed">{html.escape(group[0].name)}</span>{more} '
        yield f"{html.escape(group[0].message)}</summary>\n"
        for row in group:
            log = f"state/{row.name}.log"
            yield f'<p><b>{html.escape(row.name)}</b> {html.escape(row.message)} (<a href="{_url(log)}">log</a>)'
            yield f"</p><pre>{html.escape(chr(10).join(row.tail))}</pre>\n"
        yield "</details>\n"


def _outliers(summary: Summary) -> Iterator[str]:
    found = summary.standing_out()
    if not found:
        return
    yield f"<h2>Worth a look: {len(found)}</h2>\n<table><tbody>\n"
    for name, reasons in found.items():
        yield f"<tr><td>{_link(summary, name)}</td><td>{html.escape('; '.join(reasons))}</td></tr>\n"
    yield "</tbody></table>\n"


def _link(summary: Summary, name: str) -> str:
    """To the page of a series where there is one, or else to its folder."""
    page = f"{name}_report.html" if summary.batch.step == "report" else ""
    return f'<a href="{_url(f"{name}/{page}")}">{html.escape(name)}</a>'


def _url(path: str) -> str:
    """A relative path as a link."""
    return html.escape(quote(path))


def _plots(summary: Summary) -> Iterator[str]:
    """A dot a series in the order they were given, for every value that has a side worth a look."""
    for key, flags in summary.outliers.items():
        values = summary.numbers(key)
        known = np.flatnonzero(np.isfinite(values))
        if len(known) < 2:
            continue
        column = summary.columns[key]
        low, high = np.percentile(values[known], RANGE_OF_USUAL)
        margin = 0.5 * (high - low) or 0.05 * abs(high) or 1.0
        low, high = max(low - margin, values[known].min()), min(high + margin, values[known].max())
        if high <= low:
            low, high = low - margin, high + margin
        width, height, left = PLOT
        x = left + 8 + (width - left - 16) * np.arange(len(values)) / max(1, len(values) - 1)
        y = height - 8 - (height - 16) * (np.clip(values, low, high) - low) / (high - low)
        usual = known[~flags[known]]
        path = "".join(f"M{x[k]:.1f} {y[k]:.1f}h0" for k in usual)
        yield f"<h2>{html.escape(column.title)}{f', {column.unit}' if column.unit else ''}</h2>\n"
        yield f'<svg viewBox="0 0 {width} {height}" width="{width}" height="{height}" role="img">'
        yield f'<path d="M{left} 0V{height}" stroke="#9aa7b4"/>'
        for value, at in ((high, 14), (low, height - 4)):
            yield f'<text x="{left - 6}" y="{at}" text-anchor="end" font-size="12">{shown(float(value))}</text>'
        yield f'<path d="{path}" stroke="#2f6fb0" stroke-width="{2 * DOT}" stroke-linecap="round" opacity=".7"/>'
        for k in np.flatnonzero(flags).tolist():
            said = html.escape(f"{summary.rows[k].name}: {shown(float(values[k]))}")
            yield f'<circle cx="{x[k]:.1f}" cy="{y[k]:.1f}" r="{DOT + 1}" fill="#b3261e"><title>{said}</title></circle>'
        yield "</svg>\n"


def _table(summary: Summary) -> Iterator[str]:
    titles = [f"{c.title}{f', {c.unit}' if c.unit else ''}" for c in summary.columns.values()]
    heads = "".join(f"<th>{html.escape(t)}</th>" for t in ("series", "state", *titles, "attempts", "seconds", ""))
    yield '<h2>All series</h2>\n<input id="filter" placeholder="show only those with …">\n'
    yield f'<table id="all"><thead><tr>{heads}</tr></thead><tbody>\n'
    for k, row in enumerate(summary.rows):
        yield _table_row(summary, k, row)
    yield "</tbody></table>\n"


def _table_row(summary: Summary, k: int, row: Row) -> str:
    kind = row.state if row.state in (DONE, FAILED) else "other"
    cells = [f'<td>{_link(summary, row.name)}</td><td class="{kind}">{row.state}</td>']
    for key in summary.columns:
        value = row.measured.get(key)
        out = " out" if key in summary.outliers and summary.outliers[key][k] else ""
        exact = f"{value:.9g}" if isinstance(value, int | float) else html.escape(value or "")
        cells.append(f'<td class="n{out}" data-v="{exact}">{html.escape(shown(value))}</td>')
    seconds = "" if row.seconds is None else f"{row.seconds:.0f}"
    message = html.escape(row.message if len(row.message) < 200 else f"{row.message[:200]}…")
    cells.append(f"<td>{row.attempts or ''}</td><td>{seconds}</td><td>{message}</td>")
    return f"<tr>{''.join(cells)}</tr>\n"
