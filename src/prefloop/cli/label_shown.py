"""The tables of `prefloop label`. Names come from people, so nothing in them is read as markup."""

from typing import TYPE_CHECKING

from rich.console import Console
from rich.table import Table
from rich.text import Text

from prefloop.cli.shown import decimals, percent

if TYPE_CHECKING:
    from prefloop.collection.agreement_figures import Figure
    from prefloop.collection.label_records import ProjectSettings
    from prefloop.collection.label_statistics import LabelStatistics, Rate


def counted(number: int, name: str) -> str:
    """A count with its noun, as `1 label` and `2 labels`."""
    return f"{number:,} {name}" if number == 1 else f"{number:,} {name}s"


def settings_table(settings: "ProjectSettings") -> None:
    """A project's rules, with what each of them means."""
    table = _table("The project's rules", "setting", "value", "meaning")
    for name, described in type(settings).model_fields.items():
        table.add_row(name, Text(str(getattr(settings, name))), described.description or "")
    Console().print(table)


def label_statistics_tables(found: "LabelStatistics") -> None:
    """Counts, agreement, a line per annotator, and the warnings."""
    console = Console()
    print(
        f"{found.num_pairs_labelled:,} of {found.num_pairs:,} pairs have labels; {found.num_labels:,} labels by "
        f"{found.num_annotators:,} annotators, {decimals(found.mean_annotators_per_pair, 1)} per pair"
    )
    print("choices: " + ", ".join(f"{choice} {count:,}" for choice, count in found.choices.items()))
    lengths = found.response_lengths
    if lengths.num_pairs:
        print(
            f"words: chosen {decimals(lengths.chosen_median_words, 0)}, rejected "
            f"{decimals(lengths.rejected_median_words, 0)} (medians); the longer one is chosen in "
            f"{_rate(lengths.chosen_longer)} of {lengths.num_pairs:,} pairs"
        )
    console.print(_agreement_table(found))
    console.print(_annotator_table(found))
    for warning in found.warnings:
        console.print(Text(f"! {warning}", style="yellow"))


def _agreement_table(found: "LabelStatistics") -> Table:
    table = _table("Agreement", "statistic", "value", "95 % interval", "pairs", "")
    agreement = found.agreement
    table.add_row("percent agreement", *_figure(agreement.percent_agreement, is_share=True))
    for one in agreement.cohen_kappas:
        table.add_row(Text(f"Cohen's kappa, {one.first} and {one.second}"), *_figure(one.kappa))
    table.add_row("Fleiss' kappa", *_figure(agreement.fleiss_kappa))
    table.add_row("Krippendorff's alpha, nominal", *_figure(agreement.krippendorff_alpha_nominal))
    table.add_row("Krippendorff's alpha, ordinal", *_figure(agreement.krippendorff_alpha_ordinal))
    return table


def _figure(figure: "Figure", *, is_share: bool = False) -> tuple[str, str, str, Text]:
    shown = percent if is_share else decimals
    interval = "–" if figure.ci95 is None else f"{shown(figure.ci95[0])} to {shown(figure.ci95[1])}"
    return shown(figure.value), interval, f"{figure.num_pairs:,}", Text(figure.note)


def _annotator_table(found: "LabelStatistics") -> Table:
    headings = ("annotator", "labels", "skips", "seconds", "left side", "as the others", "gold", "repeats")
    table = _table("Annotators", *headings)
    for one in found.annotators:
        table.add_row(
            Text(one.annotator),
            f"{one.num_labels:,}",
            f"{one.num_skips:,}",
            decimals(one.median_seconds, 1),
            _rate(one.side_bias.left_as_displayed),
            _rate(one.consensus),
            _rate(one.gold),
            _rate(one.self_consistency),
        )
    return table


def _rate(rate: "Rate") -> str:
    if rate.rate is None or rate.ci95 is None:
        return "–"
    low, high = rate.ci95
    return f"{100 * rate.rate:.0f} % [{100 * low:.0f}, {100 * high:.0f}]"


def _table(title: str, *headings: str) -> Table:
    table = Table(title=title, title_justify="left", header_style="bold")
    for number, heading in enumerate(headings):
        table.add_column(heading, justify="left" if number == 0 or heading in ("", "meaning", "value") else "right")
    return table
