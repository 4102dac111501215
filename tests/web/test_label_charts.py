"""Charts of the admin page: drawn from the figures, without styles that the content security policy would block."""

import xml.etree.ElementTree as ElementTree
from pathlib import Path

import pytest
from label_projects import new_project, say
from markupsafe import Markup

from prefloop.collection.label_statistics import label_statistics
from prefloop.web.charts import bar_chart, histogram_chart
from prefloop.web.label_charts import statistics_charts, without_style_attributes

HOSTILE_NAME = 'x style="fill: red" <script>1</script> ]]> &amp; $a$ \u4e2d\U0001f600'


def test_styles_become_attributes_and_texts_stay() -> None:
    chart = Markup(
        '<svg style="max-width: 9px"><text style="fill: none; stroke: var(--ink)" x="1"> style="a: b" </text></svg>'
    )
    assert without_style_attributes(chart) == (
        '<svg><text fill="none" stroke="var(--ink)" x="1"> style="a: b" </text></svg>'
    )


def test_hostile_names_are_texts_of_the_charts(tmp_path: Path) -> None:
    with new_project(tmp_path, num_pairs=3) as store:
        for name in (HOSTILE_NAME, "Ben"):
            store.add_account(name)
            for choice in ("left", "right", "skip"):
                say(store, name, choice)
        charts = statistics_charts(label_statistics(store.pairs(), store.current_labels(), seed=0))
    assert set(charts) == {"time", "annotators", "choices", "lengths"}
    for chart in charts.values():
        root = ElementTree.fromstring(str(chart))
        assert not [element for element in root.iter() if "style" in element.attrib or element.tag.endswith("script")]
    told = ElementTree.fromstring(str(charts["annotators"])).attrib["aria-label"]
    assert HOSTILE_NAME in told
    assert "Ben 50\u00a0% (" in told


def test_without_labels_there_is_nothing_to_draw(tmp_path: Path) -> None:
    with new_project(tmp_path, num_pairs=3) as store:
        assert statistics_charts(label_statistics(store.pairs(), [], seed=0)) == {}


def test_bars_are_as_long_as_their_shares() -> None:
    chart = bar_chart([("left", 0.5), ("tie", 0.25), ("skip", 0.0)], label="Shares", chart_id="one", x_label="of all")
    root = ElementTree.fromstring(str(chart))
    assert root.attrib["aria-label"] == "Shares: left 50\u00a0%; tie 25\u00a0%; skip 0\u00a0%."
    bars = [path.attrib["d"] for path in root.iter("path") if "fill: var(--series-1)" in path.attrib.get("style", "")]
    widths = []
    for path in bars:
        places = [float(one) for one in path.replace("M", " ").replace("L", " ").replace("z", " ").split()]
        widths.append(max(places[::2]) - min(places[::2]))
    assert widths[1] == pytest.approx(widths[0] / 2, rel=1e-3)
    assert widths[2] == pytest.approx(0.0, abs=1e-3)


def test_a_histogram_draws_both_series_and_tells_their_sizes() -> None:
    chart = histogram_chart(
        [0.0, 1.0, 2.0], [("chosen", [3, 1]), ("rejected", [0, 4])],
        label="Lengths", chart_id="two", x_label="words", y_label="answers",
    )  # fmt: skip
    assert "Lengths in words: chosen 4 from 0 to 2; rejected 4 from 0 to 2." in chart
    assert "var(--series-1)" in chart
    assert "stroke-dasharray" in chart
