"""A drawing of a report: a bar for each ratio, as SVG."""

from __future__ import annotations

from collections.abc import Iterator
from html import escape

from .report import Comparison, Report

LABELS, BARS, NUMBERS = 190, 420, 60  # widths, in pixels
LINE, BAR, TITLE = 22, 14, 34  # heights
BETTER, WORSE, INK, FAINT = "#2a7f62", "#c8693b", "#222222", "#bbbbbb"
LEAST_RANGE = 1.5  # the axis reaches at least to this ratio


def draw(report: Report) -> str:
    """Return the SVG: bars that pass the line at 1 are rows in which Puna is better."""
    reach = max([LEAST_RANGE, *(line.ratio for model in report.models for line in model.lines)]) * 1.02
    body, y = [text(8, 20, f"Puna / llama.cpp, {report.processor}, {report.threads} threads", bold=True)], TITLE
    for comparison in report.models:
        body += list(draw_model(comparison, y, BARS / reach))
        y += TITLE + LINE * len(comparison.lines)
    width, height = LABELS + BARS + NUMBERS, y + 8
    head = f'<svg xmlns="http://www.w3.org/2000/svg" width="{width}" height="{height}" font-family="sans-serif">'
    return "\n".join([head, f'<rect width="{width}" height="{height}" fill="white"/>', *body, "</svg>"]) + "\n"


def draw_model(comparison: Comparison, top: float, scale: float) -> Iterator[str]:
    """Yield the parts of one model's bars, below its name. scale: pixels of a ratio of 1."""
    yield text(8, top + 22, comparison.model, bold=True)
    first = top + TITLE
    for number, line in enumerate(comparison.lines):
        y = first + number * LINE
        colour = BETTER if line.ratio >= 1 else WORSE
        yield text(LABELS - 8, y + BAR - 2, line.name, anchor="end")
        yield f'<rect x="{LABELS}" y="{y}" width="{line.ratio * scale:.1f}" height="{BAR}" fill="{colour}"/>'
        yield text(LABELS + line.ratio * scale + 6, y + BAR - 2, f"{line.ratio:.2f}")
    x, bottom = LABELS + scale, first + LINE * len(comparison.lines) - (LINE - BAR) / 2
    yield f'<line x1="{x:.1f}" y1="{first - 4}" x2="{x:.1f}" y2="{bottom}" stroke="{FAINT}" stroke-dasharray="3 2"/>'


def text(x: float, y: float, words: str, *, anchor: str = "start", bold: bool = False) -> str:
    """Return a line of text that stands on y."""
    style = f'font-size="12" font-weight="{"bold" if bold else "normal"}" fill="{INK}" text-anchor="{anchor}"'
    return f'<text x="{x:.1f}" y="{y}" {style}>{escape(words)}</text>'
