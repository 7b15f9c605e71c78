"""Pages that the viewers open in a browser: what a run has made, series by series, with the engine's own pictures."""

from __future__ import annotations

import html
import json
import os
from typing import Sequence
from urllib.parse import quote

STYLE = """body { font: 15px sans-serif; margin: 2em; color: #222; } table { border-collapse: collapse; }
td, th { padding: .3em .9em .3em 0; text-align: left; border-bottom: 1px solid #ddd; }
img { max-width: 100%; display: block; margin: .5em 0 1.5em; } .failed { color: #a00; }"""

ALIGNMENT_PICTURES = ("slices", "alignment", "residual", "warp", "loss")


def align_page(protocol) -> str:
    """Pictures of every series that ``inr-align`` has aligned; returns the path of the page."""
    parts = []
    for ts_id in series_of(protocol):
        pictures = [protocol.folder(ts_id, f"{ts_id}_{name}.png") for name in ALIGNMENT_PICTURES]
        parts.append(_section(protocol, ts_id, pictures))
    return _write(protocol, "alignment.html", "Alignment", parts)


def tomogram_page(protocol) -> str:
    """Central slices of every tomogram; returns the path of the page."""
    parts = []
    for ts_id in series_of(protocol):
        picture = protocol.folder(ts_id, f"{ts_id}_tomogram_live.png")
        parts.append(_section(protocol, ts_id, [picture]))
    return _write(protocol, "tomograms.html", "Tomograms", parts)


def report_page(protocol) -> str:
    """A table of verdicts and resolutions with links to the pages of the series; returns its path."""
    rows = ["<tr><th>series</th><th>verdict</th><th>why</th><th>half maps agree to</th></tr>"]
    for ts_id in series_of(protocol):
        report, fsc = protocol.report(ts_id, ".json"), protocol.fsc(ts_id)
        judged = _load(report) if os.path.isfile(report) else {}
        resolution = _load(fsc).get("resolution_A") if os.path.isfile(fsc) else None
        name = html.escape(ts_id)
        if os.path.isfile(protocol.report(ts_id)):
            name = f'<a href="{_relative(protocol, protocol.report(ts_id))}">{name}</a>'
        why = _why(protocol, ts_id) or "; ".join(judged.get("reasons", []))
        word = "not made" if _why(protocol, ts_id) else judged.get("verdict", "")
        cells = [name, html.escape(word), html.escape(why), "" if resolution is None else f"{resolution:.1f} &#8491;"]
        rows.append("<tr>" + "".join(f"<td>{cell}</td>" for cell in cells) + "</tr>")
    return _write(protocol, "report.html", "Report", ["<table>", *rows, "</table>"])


def series_of(protocol) -> list[str]:
    """Series that a protocol has begun, by their folders in ``extra``."""
    extra = protocol._getExtraPath()
    return sorted(name for name in os.listdir(extra) if os.path.isdir(os.path.join(extra, name)))


def _section(protocol, ts_id, pictures: Sequence[str]) -> str:
    lines = [f"<h2>{html.escape(ts_id)}</h2>"]
    if _why(protocol, ts_id):
        lines.append(f'<p class="failed">{html.escape(_why(protocol, ts_id))}</p>')
    else:
        lines += [f'<img src="{_relative(protocol, path)}" alt="">' for path in pictures if os.path.isfile(path)]
    return "\n".join(lines)


def _why(protocol, ts_id) -> str:
    path = protocol.folder(ts_id, "failed.txt")
    if not os.path.isfile(path):
        return ""
    with open(path) as file:
        return file.read().strip()


def _load(path):
    with open(path) as file:
        return json.load(file)


def _relative(protocol, path) -> str:
    return html.escape(quote(os.path.relpath(path, protocol._getExtraPath())), quote=True)


def _write(protocol, name, title, parts) -> str:
    path = protocol._getExtraPath(name)
    heading = html.escape(f"{title}: {protocol.getRunName()}")
    body = "\n".join(parts)
    with open(path, "w", encoding="utf-8") as file:
        file.write(
            f'<!DOCTYPE html>\n<html lang="en"><head><meta charset="utf-8"><title>{heading}</title>'
            f"<style>{STYLE}</style></head>\n<body><h1>{heading}</h1>\n{body}\n</body></html>\n"
        )
    return path
