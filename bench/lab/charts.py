"""Plots as inline SVG, without scripts, fonts or external files, so that a report is one page that can be mailed and kept."""

import math
from collections.abc import Mapping, Sequence
from html import escape

WIDTH, HEIGHT = 720, 240
LEFT, RIGHT, TOP, BOTTOM = 70, 150, 26, 36
COLOURS = ("#2a6fdb", "#d1495b", "#2e8b57", "#b8860b", "#7b52ab", "#008b8b", "#808080")
MEANINGS = {"ok": "#2e8b57", "failed": "#d1495b"}
"""The colours of series that mean something good or bad."""

Line = Sequence[tuple[float, float]]


def lines(series: Mapping[str, Line], *, x: str, y: str, has_log_x: bool = False) -> str:
    """A line chart with one line per name. With `has_log_x` the x axis is of percentiles: 90, 99, 99.9, evenly spaced."""
    drawn = {name: [(at, value) for at, value in line if math.isfinite(value)] for name, line in series.items()}
    drawn = {name: line for name, line in drawn.items() if line}
    if not drawn:
        return "<p>nothing was measured</p>"
    scale = _nines if has_log_x else float
    most_x = max(scale(at) for line in drawn.values() for at, _ in line) or 1.0
    least_x = min(scale(at) for line in drawn.values() for at, _ in line)
    most_y = _round_up(max(value for line in drawn.values() for _, value in line))
    parts = [_axes(most_y, x, y)]
    for label, at in _ticks_x(least_x, most_x, has_log_x=has_log_x):
        where = _x(at, least_x, most_x)
        parts.append(f'<text x="{where:.0f}" y="{HEIGHT - BOTTOM + 16}" text-anchor="middle">{escape(label)}</text>')
    for number, (name, line) in enumerate(drawn.items()):
        colour = MEANINGS.get(name) or COLOURS[number % len(COLOURS)]
        points = " ".join(f"{_x(scale(at), least_x, most_x):.1f},{_y(value, most_y):.1f}" for at, value in line)
        parts.append(f'<polyline points="{points}" fill="none" stroke="{colour}" stroke-width="1.8"/>')
        parts.append(_legend(number, name, colour))
    return _svg(parts)


def bars(groups: Mapping[str, Mapping[str, float]], *, y: str) -> str:
    """A stacked bar for each group."""
    parts_of = list(dict.fromkeys(name for group in groups.values() for name in group))
    most = _round_up(max((sum(group.values()) for group in groups.values()), default=1.0))
    parts = [_axes(most, "", y)]
    room = (WIDTH - LEFT - RIGHT) / max(len(groups), 1)
    for number, (name, group) in enumerate(groups.items()):
        left, below = LEFT + room * (number + 0.2), 0.0
        for part, value in group.items():
            top, bottom = _y(below + value, most), _y(below, most)
            colour = COLOURS[parts_of.index(part) % len(COLOURS)]
            title = f"<title>{escape(name)}, {escape(part)}: {value:,.0f}</title>"
            place = f'x="{left:.1f}" y="{top:.1f}" width="{room * 0.6:.1f}" height="{max(bottom - top, 0):.1f}"'
            parts.append(f'<rect {place} fill="{colour}">{title}</rect>')
            below += value
        middle = left + room * 0.3
        parts.append(f'<text x="{middle:.0f}" y="{HEIGHT - BOTTOM + 16}" text-anchor="middle">{escape(name)}</text>')
        parts.append(f'<text x="{middle:.0f}" y="{_y(below, most) - 4:.0f}" text-anchor="middle">{below:,.0f}</text>')
    parts += [_legend(number, name, COLOURS[number % len(COLOURS)]) for number, name in enumerate(parts_of)]
    return _svg(parts)


def _svg(parts: Sequence[str]) -> str:
    return f'<svg viewBox="0 0 {WIDTH} {HEIGHT}" role="img">{"".join(parts)}</svg>'


def _axes(most_y: float, x: str, y: str) -> str:
    parts = []
    for step in range(5):
        value = most_y * step / 4
        where = _y(value, most_y)
        parts.append(f'<line x1="{LEFT}" x2="{WIDTH - RIGHT}" y1="{where:.1f}" y2="{where:.1f}" stroke="#8884"/>')
        parts.append(f'<text x="{LEFT - 6}" y="{where + 4:.0f}" text-anchor="end">{_short(value)}</text>')
    parts.append(f'<text x="{(LEFT + WIDTH - RIGHT) / 2:.0f}" y="{HEIGHT - 4}" text-anchor="middle">{escape(x)}</text>')
    parts.append(f'<text x="4" y="10">{escape(y)}</text>')
    return "".join(parts)


def _legend(number: int, name: str, colour: str) -> str:
    top = TOP + 18 * number
    box = f'<rect x="{WIDTH - RIGHT + 12}" y="{top}" width="10" height="10" fill="{colour}"/>'
    return f'{box}<text x="{WIDTH - RIGHT + 28}" y="{top + 9}">{escape(name)}</text>'


def _x(at: float, least: float, most: float) -> float:
    return LEFT + (WIDTH - LEFT - RIGHT) * (at - least) / ((most - least) or 1.0)


def _y(value: float, most: float) -> float:
    return HEIGHT - BOTTOM - (HEIGHT - BOTTOM - TOP) * value / (most or 1.0)


def _nines(percentile: float) -> float:
    """0 for the median, 1 for 90, 2 for 99 and so on."""
    return -math.log10(max(1 - percentile / 100, 1e-5))


def _ticks_x(least: float, most: float, *, has_log_x: bool) -> list[tuple[str, float]]:
    if has_log_x:
        known = {"50": 50.0, "90": 90.0, "99": 99.0, "99.9": 99.9, "99.99": 99.99}
        return [(label, _nines(at)) for label, at in known.items() if least <= _nines(at) <= most]
    return [(_short(at), at) for at in (least + (most - least) * step / 4 for step in range(5))]


def _round_up(value: float) -> float:
    """Round up to a number that is easy to read."""
    if value <= 0 or not math.isfinite(value):
        return 1.0
    power = 10 ** math.floor(math.log10(value))
    return float(next(power * step for step in (1, 2, 4, 5, 8, 10) if power * step >= value))


def _short(value: float) -> str:
    if value >= 10_000:
        return f"{value / 1_000:,.0f}k"
    return f"{value:,.0f}" if value >= 10 or value == int(value) else f"{value:.2g}"
