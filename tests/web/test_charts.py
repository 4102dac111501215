"""Charts as markup: the page's colours, ids of their own, figures in words, and points where the figures are."""

import re
import xml.etree.ElementTree as ElementTree

import pytest

from prefloop.web.charts import (
    COLOURS,
    POINTS_PER_CURVE,
    Curve,
    Estimate,
    Panel,
    calibration_chart,
    curve_chart,
    dot_and_whisker_chart,
)

HOSTILE = '<script>alert("1")</script> & $x_{1}$'


def dots(chart_id: str = "a") -> str:
    estimates = [Estimate("SFT", 0.47, (0.43, 0.51), is_emphasised=False), Estimate("PPO", 0.91)]
    return dot_and_whisker_chart(estimates, label="Success", chart_id=chart_id, x_label="success", ceiling=0.95)


def curves(curve: Curve, *, chart_id: str = "a") -> str:
    return curve_chart([Panel("Loss", [curve])], label="SFT", chart_id=chart_id, x_label="step")


@pytest.mark.parametrize(
    "chart", [dots(), curves(Curve("training", [0, 1], [2.0, 1.0])), calibration_chart([(0.1, 0.2, 5)], chart_id="a")]
)
def test_a_chart_is_one_svg_in_the_colours_of_the_page(chart: str):
    root = ElementTree.fromstring(chart)
    assert root.tag == "svg"
    assert root.get("role") == "img"
    assert not [element for element in root.iter() if element.tag in ("style", "metadata", "image", "script")]
    assert "var(--series-1)" in chart
    assert not any(colour in chart for colour in COLOURS)
    # A colour that is not the page's would be wrong on one of both grounds.
    assert set(re.findall(r"(?:fill|stroke): ([^;\"]+)", chart)) <= {"none", *COLOURS.values()}
    assert "font-family" not in chart


def test_the_label_tells_the_figures():
    label = ElementTree.fromstring(dots()).get("aria-label") or ""
    assert label.replace("\u00a0", " ") == "Success: SFT 47 % (43 % to 51 %); PPO 91 %; ceiling 95 %."
    label = ElementTree.fromstring(curves(Curve("training", [0, 200], [3.25, 1.0]))).get("aria-label")
    assert label == "SFT. training: 3.25 at step 0, 1 at 200."


def test_texts_cannot_break_out():
    chart = dot_and_whisker_chart([Estimate(HOSTILE, 0.5)], label=HOSTILE, chart_id="a", x_label=HOSTILE)
    root = ElementTree.fromstring(chart)
    assert "script" not in {element.tag for element in root.iter()}
    texts = [element.text for element in root.iter("text")]
    # The name of a row is cut where it would crowd out the chart; the label has all of it.
    assert HOSTILE in texts
    assert HOSTILE[:21] + "…" in texts
    assert (root.get("aria-label") or "").startswith(f"{HOSTILE}: {HOSTILE} 50")


def test_two_charts_share_no_id_and_each_refers_to_its_own():
    first, second = (ElementTree.fromstring(dots(chart_id)) for chart_id in ("a", "b"))
    ids = [{element.get("id") for element in root.iter() if element.get("id")} for root in (first, second)]
    assert not ids[0] & ids[1]
    for root, own in zip((first, second), ids, strict=True):
        used = {(element.get("href") or "")[1:] for element in root.iter("use")}
        assert used
        assert used <= own


def test_dots_stand_where_the_shares_are():
    shares = (0.0, 0.25, 1.0)
    chart = dot_and_whisker_chart(
        [Estimate(f"p{share}", share) for share in shares], label="", chart_id="a", x_label="share"
    )
    root = ElementTree.fromstring(chart)
    marks = [
        (float(use.get("x") or 0), float(use.get("y") or 0))
        for use in root.iter("use")
        if "series-1" in (use.get("style") or "")
    ]
    (x0, y0), (x1, y1), (x2, y2) = marks
    assert (x1 - x0) / (x2 - x0) == pytest.approx(0.25, abs=1e-3)
    # From top to bottom in the order given; y grows downwards.
    assert y0 < y1 < y2


def test_a_long_curve_is_drawn_by_means():
    num_points = 10 * POINTS_PER_CURVE
    long = curves(Curve("training", list(range(num_points)), [float(x % 2) for x in range(num_points)]))
    assert len(long) < 40_000
    # Zeros and ones in turn average to one half, so the curve is flat.
    line = next(
        path.get("d") or ""
        for path in ElementTree.fromstring(long).iter("path")
        if "series-1" in (path.get("style") or "")
    )
    heights = {float(y) for y in re.findall(r"[ML] [\d.]+ ([\d.]+)", line)}
    assert max(heights) - min(heights) < 1e-6


def test_the_limit_and_the_marks_are_drawn():
    panel = Panel(
        "Judge", [Curve("judge", [0, 5, 9], [0.5, 0.7, 0.4], drawn_as="points")], as_percent=True, marked=[(9, 0.4)]
    )
    chart = curve_chart([panel], label="PPO", chart_id="a", x_label="KL", x_limit=(6.0, "KL budget 6"))
    assert "var(--alarm)" in chart
    assert "var(--series-2)" in chart
    texts = [element.text or "" for element in ElementTree.fromstring(chart).iter("text")]
    assert "KL budget 6" in texts
    assert any(text.endswith(" %") for text in texts)
    plain = curve_chart([Panel("Judge", panel.curves)], label="PPO", chart_id="a", x_label="KL")
    assert "var(--alarm)" not in plain
    assert "var(--series-2)" not in plain


def test_the_same_figures_give_the_same_bytes():
    assert dots() == dots()
