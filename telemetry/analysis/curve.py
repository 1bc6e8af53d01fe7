"""Success over updates as a picture, in training and on held-out tasks.

`python run.py curve RUN` writes it to a file.
"""

from __future__ import annotations

from collections.abc import Sequence
from html import escape
from itertools import cycle

from telemetry.html.charts import round_steps
from telemetry.sinks.metrics_file import Record, select_kind

WIDTH = 640
HEIGHT = 300
MARGIN = 44
COLORS = ("#1f6feb", "#bf3989", "#1a7f37", "#9a6700")
SMOOTHING = 5
"""Updates over which training success is averaged."""

Points = list[tuple[float, float]]


def curves(metrics: Sequence[Record]) -> tuple[Points, Points]:
    """(update, success) of training, averaged over SMOOTHING updates, and of the evaluations."""
    updates = _success_points(select_kind(metrics, "update"))
    training = []
    for end, (update, _) in enumerate(updates, 1):
        window = updates[max(0, end - SMOOTHING) : end]
        training.append((update, sum(success for _, success in window) / len(window)))
    return training, _success_points(select_kind(metrics, "evaluation"))


def _success_points(records: Sequence[Record]) -> Points:
    return [
        (record["update"], record["success"]) for record in records if record["success"] is not None
    ]


def svg(runs: dict[str, tuple[Points, Points]]) -> str:
    """The picture: a thin line for training, dots on a thick one for held-out tasks."""
    updates = [x for points in runs.values() for x, _ in [*points[0], *points[1]]]
    last = max(updates, default=1) or 1
    parts = [*_frame(last), *_legend(list(runs))]
    for color, (name, (training, held_out)) in zip(cycle(COLORS), runs.items(), strict=False):
        parts.append(_line(training, last, color, 1))
        parts.append(_line(held_out, last, color, 2.5))
        for update, success in held_out:
            x, y = _place(update, success, last)
            parts.append(
                f'<circle cx="{x:.1f}" cy="{y:.1f}" r="4" fill="{color}">'
                f"<title>{escape(name)}: {success:.1%}</title></circle>"
            )
    return "\n".join([*parts, "</svg>"])


def _frame(last: float) -> list[str]:
    parts = [
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {WIDTH} {HEIGHT}" '
        'font-family="sans-serif" font-size="12">',
        f'<rect width="{WIDTH}" height="{HEIGHT}" fill="white"/>',
    ]
    for share in (0, 0.25, 0.5, 0.75, 1):
        x, y = _place(0, share, last)
        parts.append(f'<line x1="{x}" y1="{y}" x2="{WIDTH - MARGIN}" y2="{y}" stroke="#ddd"/>')
        parts.append(f'<text x="{x - 8}" y="{y + 4}" text-anchor="end">{share:.0%}</text>')
    parts.append(f'<text x="{WIDTH / 2}" y="{HEIGHT - 8}" text-anchor="middle">updates</text>')
    for update in (tick for tick in round_steps(0, last) if tick <= last):
        x, y = _place(update, 0, last)
        parts.append(f'<text x="{x:.1f}" y="{y + 16}" text-anchor="middle">{update:g}</text>')
    parts.append(f'<text x="{MARGIN}" y="20">success: held-out (dots), training (thin)</text>')
    return parts


def _legend(names: Sequence[str]) -> list[str]:
    """The names of several runs, in their colors, one below the other."""
    if len(names) < 2:
        return []
    x = WIDTH - MARGIN
    return [
        f'<text x="{x}" y="{20 + 14 * line}" text-anchor="end" fill="{color}">{escape(name)}</text>'
        for line, (color, name) in enumerate(zip(cycle(COLORS), names, strict=False))
    ]


def _line(points: Points, last: float, color: str, width: float) -> str:
    places = [_place(update, success, last) for update, success in points]
    line = " ".join(f"{x:.1f},{y:.1f}" for x, y in places)
    return f'<polyline points="{line}" fill="none" stroke="{color}" stroke-width="{width}"/>'


def _place(update: float, success: float, last: float) -> tuple[float, float]:
    """The place of a point in the picture, whose axis of updates goes to `last`."""
    x = MARGIN + (WIDTH - 2 * MARGIN) * update / last
    y = HEIGHT - MARGIN - (HEIGHT - 2 * MARGIN) * success
    return x, y
