"""Charts of a report as inline SVG: no script, no network, the same bytes for the same figures.

Colours are the page's own: matplotlib draws in marker colours that become CSS variables, so one chart is readable on a
light page, on a dark one and on paper. Texts stay texts and take the page's font. A chart is at most as wide as a
telephone and carries its figures in words as its label.
"""

import io
import math
import re
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, Literal

import matplotlib
from markupsafe import Markup, escape
from matplotlib.axes import Axes
from matplotlib.backends.backend_svg import FigureCanvasSVG
from matplotlib.figure import Figure
from matplotlib.ticker import FuncFormatter, MaxNLocator

COLOURS = {
    "#010101": "var(--ink)",
    "#010102": "var(--muted)",
    "#010103": "var(--line)",
    "#010104": "var(--series-1)",
    "#010105": "var(--series-2)",
    "#010106": "var(--alarm)",
}
"""What matplotlib draws with, and what the page puts in its place."""
INK, MUTED, LINE, SERIES_1, SERIES_2, ALARM = COLOURS

STYLE: Any = {
    "svg.fonttype": "none",
    "svg.hashsalt": "prefloop",
    "text.parse_math": False,
    "font.family": ["DejaVu Sans"],
    "font.size": 11.0,
    "axes.labelsize": 11.0,
    "axes.titlesize": 12.0,
    "text.color": INK,
    "axes.labelcolor": MUTED,
    "axes.edgecolor": LINE,
    "xtick.color": LINE,
    "ytick.color": LINE,
    "xtick.labelcolor": MUTED,
    "ytick.labelcolor": MUTED,
    "grid.color": LINE,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.grid": True,
    "axes.axisbelow": True,
    "legend.frameon": False,
    "lines.linewidth": 1.8,
    "lines.solid_capstyle": "round",
}

POINTS_PER_CURVE = 120
"""A longer curve is drawn as means of equal stretches: its course shows better without the noise of single steps."""


@dataclass(frozen=True)
class Estimate:
    """A share with its interval, both in [0, 1]. `is_emphasised` draws it in the first colour instead of grey."""

    label: str
    value: float
    interval: tuple[float, float] | None = None
    is_emphasised: bool = True


@dataclass(frozen=True)
class Curve:
    """Points of one series in order; `points` marks each of them, `line` only joins them."""

    label: str
    x: Sequence[float]
    y: Sequence[float]
    drawn_as: Literal["line", "points"] = "line"


@dataclass(frozen=True)
class Panel:
    """One pair of axes: its title, what is drawn in it, and marks on it."""

    title: str
    curves: Sequence[Curve]
    as_percent: bool = False
    marked: Sequence[tuple[float, float]] = ()


def dot_and_whisker_chart(
    estimates: Sequence[Estimate], *, label: str, chart_id: str, x_label: str, ceiling: float | None = None
) -> Markup:
    """Shares as dots with their 95 % intervals, one row each from top to bottom; `ceiling` is a dashed line."""
    with _figure(width=350, height=60 + 30 * len(estimates)) as figure:
        axes = figure.add_subplot()
        for row, estimate in enumerate(estimates):
            colour = SERIES_1 if estimate.is_emphasised else MUTED
            if estimate.interval is not None:
                axes.plot(estimate.interval, [row, row], color=colour, linewidth=2.5)
            axes.plot([estimate.value], [row], color=colour, marker="o", markersize=8)
            beside = axes.get_yaxis_transform()  # x counts the width of the axes, y the rows
            axes.text(1.02, row, _percent(estimate.value), va="center", fontweight="bold", transform=beside)
        axes.set_yticks(range(len(estimates)), [_shortened(one.label, 22) for one in estimates], color=INK)
        axes.set_ylim(len(estimates) - 0.5, -0.5)
        axes.set_xlim(-0.03, 1.03)
        axes.xaxis.set_major_formatter(FuncFormatter(_percent_tick))
        axes.set_xlabel(x_label)
        if ceiling is not None:
            axes.axvline(ceiling, color=SERIES_2, linestyle=(0, (4, 3)), linewidth=1.5)
        axes.grid(visible=False, axis="y")
        axes.spines["left"].set_visible(False)
        axes.tick_params(length=0)
        figures = [
            f"{one.label} {_percent(one.value)}"
            + (f" ({_percent(one.interval[0])} to {_percent(one.interval[1])})" if one.interval else "")
            for one in estimates
        ]
        if ceiling is not None:
            figures.append(f"ceiling {_percent(ceiling)}")
        return _inline(figure, label=f"{label}: {'; '.join(figures)}.", chart_id=chart_id)


def curve_chart(
    panels: Sequence[Panel],
    *,
    label: str,
    chart_id: str,
    x_label: str,
    x_limit: tuple[float, str] | None = None,
    width: float = 380,
) -> Markup:
    """Panels below one another over one x-axis. `x_limit` is a dashed line there, with its name."""
    with _figure(width=width, height=40 + 150 * len(panels)) as figure:
        rows = figure.subplots(len(panels), 1, sharex=True, squeeze=False)[:, 0]
        for axes, panel in zip(rows, panels, strict=True):
            _draw_panel(axes, panel)
        if x_limit is not None:
            for axes in rows:
                axes.axvline(x_limit[0], color=SERIES_2, linestyle=(0, (4, 3)), linewidth=1.5)
            rows[0].set_title(x_limit[1], color=MUTED, loc="right", fontsize=11)
        rows[-1].xaxis.set_major_locator(MaxNLocator(5, integer=x_label == "step"))
        rows[-1].set_xlabel(x_label)
        told = [_told(curve, x_label) for panel in panels for curve in panel.curves]
        return _inline(figure, label=f"{label}. {' '.join(told)}", chart_id=chart_id)


def calibration_chart(bins: Sequence[tuple[float, float, float]], *, chart_id: str) -> Markup:
    """Bins (predicted, observed, count) against the diagonal on which predictions come true as often as they say."""
    largest = max(count for _, _, count in bins)
    with _figure(width=340, height=300) as figure:
        axes = figure.add_subplot()
        axes.plot([0, 1], [0, 1], color=MUTED, linestyle=(0, (4, 3)), linewidth=1.2)
        axes.plot([one[0] for one in bins], [one[1] for one in bins], color=SERIES_1)
        for predicted, observed, count in bins:
            axes.plot(
                [predicted], [observed], color=SERIES_1, marker="o", markersize=4 + 4 * math.sqrt(count / largest)
            )
        for axis in (axes.xaxis, axes.yaxis):
            axis.set_major_formatter(FuncFormatter(_percent_tick))
        axes.set_xlim(-0.03, 1.03)
        axes.set_ylim(-0.03, 1.03)
        axes.set_xlabel("predicted")
        axes.set_ylabel("came true")
        axes.tick_params(length=0)
        told = "; ".join(f"predicted {_percent(one[0])}, came true {_percent(one[1])}" for one in bins)
        return _inline(figure, label=f"Calibration of the reward model. {told}.", chart_id=chart_id)


def bar_chart(shares: Sequence[tuple[str, float]], *, label: str, chart_id: str, x_label: str) -> Markup:
    """Shares in [0, 1] as bars, one row each from top to bottom, each with its figure."""
    with _figure(width=350, height=45 + 30 * len(shares)) as figure:
        axes = figure.add_subplot()
        axes.barh(range(len(shares)), [share for _, share in shares], height=0.62, color=SERIES_1)
        beside = axes.get_yaxis_transform()  # x counts the width of the axes, y the rows
        for row, (_, share) in enumerate(shares):
            axes.text(1.02, row, _percent(share), va="center", fontweight="bold", transform=beside)
        axes.set_yticks(range(len(shares)), [_shortened(name, 22) for name, _ in shares], color=INK)
        axes.set_ylim(len(shares) - 0.4, -0.6)
        axes.set_xlim(0, max([0.05, *(share for _, share in shares)]))
        axes.xaxis.set_major_locator(MaxNLocator(4))
        axes.xaxis.set_major_formatter(FuncFormatter(_percent_tick))
        axes.set_xlabel(x_label)
        axes.grid(visible=False, axis="y")
        axes.spines["left"].set_visible(False)
        axes.tick_params(length=0)
        told = "; ".join(f"{name} {_percent(share)}" for name, share in shares)
        return _inline(figure, label=f"{label}: {told}.", chart_id=chart_id)


def histogram_chart(
    edges: Sequence[float],
    series: Sequence[tuple[str, Sequence[int]]],
    *,
    label: str,
    chart_id: str,
    x_label: str,
    y_label: str,
) -> Markup:
    """Counts in bins as outlines, at most two series over one another; `edges` are one more than the bins."""
    with _figure(width=380, height=230) as figure:
        axes = figure.add_subplot()
        for (name, counts), colour, dashes in zip(series, (SERIES_1, SERIES_2), ("solid", (0, (4, 2))), strict=False):
            axes.stairs(counts, edges, color=colour, linewidth=1.8, linestyle=dashes, label=name)
        axes.set_xlabel(x_label)
        axes.set_ylabel(y_label)
        axes.yaxis.set_major_locator(MaxNLocator(4, integer=True))
        axes.margins(x=0.02)
        axes.tick_params(length=0)
        axes.legend(loc="best", fontsize=11, labelcolor=MUTED, handlelength=1.8)
        told = "; ".join(f"{name} {sum(counts)} from {edges[0]:.3g} to {edges[-1]:.3g}" for name, counts in series)
        return _inline(figure, label=f"{label} in {x_label}: {told}.", chart_id=chart_id)


def _draw_panel(axes: Axes, panel: Panel) -> None:
    for curve, colour in zip(panel.curves, (SERIES_1, SERIES_2), strict=False):
        x, y = _thinned(curve.x, curve.y)
        marker = "o" if curve.drawn_as == "points" or len(x) == 1 else None
        axes.plot(x, y, color=colour, marker=marker, markersize=4.5, label=curve.label)
    for x, y in panel.marked:
        axes.plot([x], [y], color=ALARM, marker="o", markersize=12, fillstyle="none", markeredgewidth=2)
    axes.set_title(_shortened(panel.title, 34), loc="left")
    axes.yaxis.set_major_locator(MaxNLocator(4))
    if panel.as_percent:
        axes.yaxis.set_major_formatter(FuncFormatter(_percent_tick))
    axes.tick_params(length=0)
    axes.margins(x=0.03, y=0.12)
    if len(panel.curves) > 1:
        axes.legend(loc="best", fontsize=11, labelcolor=MUTED, handlelength=1.4)


def _thinned(x: Sequence[float], y: Sequence[float]) -> tuple[list[float], list[float]]:
    stretch = -(-len(x) // POINTS_PER_CURVE)
    if stretch <= 1:
        return list(x), list(y)
    starts = range(0, len(x), stretch)

    def means(values: Sequence[float]) -> list[float]:
        return [sum(part) / len(part) for part in (values[start : start + stretch] for start in starts)]

    return means(x), means(y)


def _told(curve: Curve, x_label: str) -> str:
    if not curve.x:
        return f"{curve.label}: no points."
    ends = (curve.y[0], curve.x[0], curve.y[-1], curve.x[-1])
    return "{}: {:.3g} at {} {:.3g}, {:.3g} at {:.3g}.".format(curve.label, ends[0], x_label, *ends[1:])


def _percent_tick(share: float, _position: int | None) -> str:
    return f"{100 * share:.3g} %"


def _shortened(text: str, num_characters: int) -> str:
    """A text that leaves room for the chart; the label of the chart holds all of it."""
    return text if len(text) <= num_characters else text[: num_characters - 1].rstrip() + "…"


def _percent(share: float) -> str:
    return f"{share:.0%}".replace("%", "\u00a0%")


@contextmanager
def _figure(*, width: float, height: float) -> Iterator[Figure]:
    """A figure of so many CSS pixels, in the report's style; one point of matplotlib is one pixel."""
    with matplotlib.rc_context(STYLE):
        yield Figure(figsize=(width / 72, height / 72), dpi=72, layout="constrained")


def _inline(figure: Figure, *, label: str, chart_id: str) -> Markup:
    """The figure as an `svg` element for the middle of a page: no prolog, no global style, ids of its own."""
    figure.patch.set_visible(False)
    for axes in figure.axes:
        axes.patch.set_visible(False)
    stream = io.StringIO()
    FigureCanvasSVG(figure).print_svg(stream, metadata={"Date": None})
    text = stream.getvalue()
    width, height = re.search(r'viewBox="0 0 ([\d.]+) ([\d.]+)"', text).groups()  # type: ignore[union-attr]
    body = text[text.index("</metadata>") + len("</metadata>") : text.rindex("</svg>")]
    body = re.sub(r"<style[^>]*>.*?</style>", "", body, count=1, flags=re.DOTALL)
    body = body.replace("font-family: 'DejaVu Sans'; ", "")  # Texts take the page's font.
    # Without its own prefix, an id of one chart would name a shape in another.
    body = re.sub(r'\bid="', f'id="{chart_id}-', body)
    body = body.replace("url(#", f"url(#{chart_id}-").replace('xlink:href="#', f'href="#{chart_id}-')
    for drawn, wanted in COLOURS.items():
        body = body.replace(drawn, wanted)
    return Markup(  # noqa: S704 - matplotlib escapes the texts that it draws
        f'<svg class="chart" role="img" aria-label="{escape(label)}" viewBox="0 0 {width} {height}" '
        f'style="max-width: {float(width):g}px">{body}</svg>'
    )
