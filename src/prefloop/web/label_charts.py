"""The charts of the admin page. Drawing takes matplotlib, which is loaded when the first chart is drawn."""

import re
import threading
import warnings
from datetime import datetime

from markupsafe import Markup

from prefloop.collection.label_statistics import LabelStatistics
from prefloop.web.report_formats import is_number

CHOICE_NAMES = {"left": "first answer", "right": "second answer", "tie": "tie", "both_bad": "both bad", "skip": "skip"}
"""By the pair's own sides, which nobody who chooses gets to see."""

MAX_ANNOTATORS = 20

# The style that matplotlib draws in is one for the whole process.
_drawing = threading.Lock()


def statistics_charts(statistics: LabelStatistics) -> dict[str, Markup]:
    """Charts by name, each only where there is something to draw: time, annotators, choices, lengths."""
    with _drawing, warnings.catch_warnings():
        # The page's font draws the letters; matplotlib only misses them in its own.
        warnings.filterwarnings("ignore", message="Glyph .* missing from font")
        drawn = {
            "time": _labels_over_time(statistics),
            "annotators": _agreement_by_annotator(statistics),
            "choices": _choice_shares(statistics),
            "lengths": _response_lengths(statistics),
        }
    return {name: without_style_attributes(chart) for name, chart in drawn.items() if chart is not None}


def without_style_attributes(chart: Markup) -> Markup:
    """The same SVG with presentation attributes, which a content security policy without inline styles lets through."""
    return Markup(re.sub(r"<[^>]*>", _restyled, str(chart)))  # noqa: S704 - the markup is that of `charts`


def _restyled(tag: re.Match[str]) -> str:
    def attributes(style: re.Match[str]) -> str:
        pairs = [one.split(":", 1) for one in style[1].split(";") if ":" in one]
        # The page's style sheet bounds the width of a chart.
        return "".join(f' {name.strip()}="{value.strip()}"' for name, value in pairs if name.strip() != "max-width")

    return re.sub(r'\sstyle="([^"]*)"', attributes, tag[0])


def _labels_over_time(statistics: LabelStatistics) -> Markup | None:
    from prefloop.web.charts import Curve, Panel, curve_chart

    stretches = statistics.labels_in_time
    if not stretches:
        return None
    start = datetime.fromisoformat(stretches[0].start).timestamp()
    unit, seconds = ("hours", 3600) if stretches[0].seconds < 86_400 else ("days", 86_400)
    ends = [(datetime.fromisoformat(one.start).timestamp() + one.seconds - start) / seconds for one in stretches]
    totals, so_far = [0], 0
    for one in stretches:
        so_far += one.num_labels
        totals.append(so_far)
    panel = Panel("Labels so far", [Curve("labels", [0.0, *ends], [float(total) for total in totals])])
    return curve_chart(
        [panel],
        label="Labels over time",
        chart_id="time",
        x_label=f"{unit} since {stretches[0].start[:16].replace('T', ' ')} UTC",
    )


def _agreement_by_annotator(statistics: LabelStatistics) -> Markup | None:
    from prefloop.web.charts import Estimate, dot_and_whisker_chart

    rated = [one for one in statistics.annotators if is_number(one.consensus.rate)]
    # The most work first, where there are too many for one chart.
    rated = sorted(rated, key=lambda one: -one.num_labels)[:MAX_ANNOTATORS]
    estimates = [
        Estimate(one.annotator, one.consensus.rate, one.consensus.ci95)
        for one in rated
        if one.consensus.rate is not None
    ]
    if not estimates:
        return None
    return dot_and_whisker_chart(
        estimates, label="Agreement with the others", chart_id="annotators", x_label="chose as the others did"
    )


def _choice_shares(statistics: LabelStatistics) -> Markup | None:
    from prefloop.web.charts import bar_chart

    total = sum(statistics.choices.values())
    if not total:
        return None
    shares = [(CHOICE_NAMES[choice], num / total) for choice, num in statistics.choices.items()]
    return bar_chart(shares, label="Shares of the choices", chart_id="choices", x_label="of all answers")


def _response_lengths(statistics: LabelStatistics) -> Markup | None:
    from prefloop.web.charts import histogram_chart

    lengths = statistics.response_lengths
    if not lengths.num_pairs:
        return None
    series = [("chosen", lengths.chosen_histogram), ("rejected", lengths.rejected_histogram)]
    return histogram_chart(
        lengths.edges, series, label="Lengths of the answers", chart_id="lengths", x_label="words", y_label="answers"
    )
