"""The card of an exported data set: README.md with the front matter that data hubs read and every figure as a table."""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import yaml

from prefloop.collection.agreement_figures import Figure
from prefloop.collection.label_records import ProjectSettings
from prefloop.collection.label_statistics import LabelStatistics, Rate, SideBias

_SIZES = ((1_000, "n<1K"), (10_000, "1K<n<10K"), (100_000, "10K<n<100K"), (1_000_000, "100K<n<1M"))


@dataclass(frozen=True)
class CardFacts:
    """What a card is made from. `facts` are those of the manifest; `with_messages`: prompts are lists of messages."""

    settings: ProjectSettings
    facts: Mapping[str, Any]
    num_rows: Mapping[str, int]
    with_messages: bool
    figures: LabelStatistics


def data_set_card(card: CardFacts) -> str:
    """The whole of README.md."""
    sections = [
        f"# {_plain(card.settings.name)}",
        _opening(card),
        _files(card),
        _how_it_was_made(card),
        "## Do people agree?\n\n" + _agreement(card.figures),
        "## Annotators\n\n" + _annotators(card),
        "## Answers\n\n" + _answers(card.figures),
        _warnings(card.figures),
        _limits(card),
    ]
    front_matter = yaml.safe_dump(_front_matter(card), sort_keys=False, allow_unicode=True)
    return f"---\n{front_matter}---\n\n" + "\n\n".join(section for section in sections if section) + "\n"


def _front_matter(card: CardFacts) -> dict[str, Any]:
    num = card.facts["num_preferences"]
    parts = [name for name in card.num_rows if name not in ("pairs.jsonl", "labels.jsonl")]
    return {
        "pretty_name": card.settings.name,
        "task_categories": ["text-generation"],
        "tags": ["preference", "human-feedback", "rlhf", "dpo", "reward-modeling", "trl", "prefloop"],
        "size_categories": [next((name for bound, name in _SIZES if num < bound), "n>1M")],
        "configs": [
            {
                "config_name": "default",
                "data_files": [{"split": name.removesuffix(".jsonl"), "path": name} for name in parts],
            }
        ],
        "dataset_info": {"config_name": "default", "features": _features(card.with_messages)},
    }


def _features(with_messages: bool) -> list[dict[str, Any]]:
    """The column types, said aloud: in a small part a column of nulls would otherwise get another type."""
    messages = [{"name": "role", "dtype": "string"}, {"name": "content", "dtype": "string"}]
    text: dict[str, Any] = {"list": messages} if with_messages else {"dtype": "string"}
    types: dict[str, dict[str, Any]] = {
        "prompt": text,
        "chosen": text,
        "rejected": text,
        "agreement": {"dtype": "float64"},
        "num_annotators": {"dtype": "int64"},
        "strength": {"dtype": "float64"},
        "pair_id": {"dtype": "string"},
        "prompt_id": {"dtype": "string"},
        "chosen_source": {"dtype": "string"},
        "rejected_source": {"dtype": "string"},
        "chosen_ended": {"dtype": "bool"},
        "rejected_ended": {"dtype": "bool"},
        "chosen_by": {"dtype": "string"},
    }
    # A copy of each, because YAML would write the second use of the same object as a reference.
    return [{"name": name, **{key: _copied(value) for key, value in kind.items()}} for name, kind in types.items()]


def _copied(value: Any) -> Any:
    return [dict(one) for one in value] if isinstance(value, list) else value


# --- sections -------------------------------------------------------------------------------------------------------


def _opening(card: CardFacts) -> str:
    facts, figures = card.facts, card.figures
    return (
        f"Preferences of people between two answers to one prompt: {facts['num_preferences']:,} preferences from "
        f"{figures.num_labels:,} labels by {figures.num_annotators:,} annotators. Columns `prompt`, `chosen` and "
        "`rejected` are read by preference trainers as they stand; `agreement` is how sure the annotators are "
        "together, from 0.5 to 1."
    )


def _files(card: CardFacts) -> str:
    said = {
        "pairs.jsonl": "all pairs with both answers and where they come from",
        "labels.jsonl": "each current label of each annotator",
    }
    rows = [(f"`{name}`", f"{count:,}", said.get(name, "preferences")) for name, count in card.num_rows.items()]
    notes = "".join(f"\n\n{note}" for note in card.facts["notes"])
    return "## Files\n\n" + _table(("file", "rows", "what"), rows) + notes


def _how_it_was_made(card: CardFacts) -> str:
    facts, settings = card.facts, card.settings
    methods = {
        "majority": "The side with more votes is chosen; `agreement` is its share of them.",
        "dawid_skene": (
            "Votes are weighted by each annotator's reliability, learned from all labels (Dawid and Skene, 1979, blind "
            "to which side is called left); `agreement` is the probability of the chosen side."
        ),
    }
    ties = {"half": "A tie gives half a vote to each side.", "drop": "Ties give no vote."}
    both_bad = {"tie": "Both bad counts as a tie.", "drop": "Both bad gives no vote."}
    text = (
        f"Each pair is shown to up to {settings.annotators_per_pair} people, with its sides in an order drawn for each "
        f"of them; nobody sees which model wrote an answer. {methods[facts['aggregation']]} {ties[facts['ties']]} "
        f"{both_bad[facts['both_bad']]} Skips are no votes. Pairs need {facts['min_annotators']} or more votes, and "
        "those whose votes are even give no preference. Preferences are split by prompt: one prompt never stands in "
        "two files. `strength` is the mean of the strengths given, from 1 (hardly better) to 4 (clearly). `chosen_by` "
        "says why a pair was labelled: only the random ones are a fair sample for evaluation."
    )
    dropped = [(reason, f"{count:,}") for reason, count in facts["dropped"].items()]
    if imported := facts["num_imported"]:
        text += f" {imported:,} labels were imported from elsewhere: how they were shown is as their source says."
    kept = [("preference", f"{facts['num_preferences']:,}"), *dropped, ("all pairs", f"{facts['num_pairs']:,}")]
    parts = ["## How it was made", text, _table(("what became of the pairs", "pairs"), kept)]
    if settings.guidelines.strip():
        parts += ["The guidelines that annotators had in view:", _fenced(settings.guidelines)]
    return "\n\n".join(parts)


def _agreement(figures: LabelStatistics) -> str:
    agreement = figures.agreement
    named: list[tuple[str, Figure]] = [
        ("percent agreement", agreement.percent_agreement),
        ("Fleiss' kappa", agreement.fleiss_kappa),
        ("Krippendorff's alpha, nominal", agreement.krippendorff_alpha_nominal),
        ("Krippendorff's alpha, ordinal", agreement.krippendorff_alpha_ordinal),
        *((f"Cohen's kappa, {one.first} and {one.second}", one.kappa) for one in agreement.cohen_kappas),
    ]
    rows = [
        (name, _number(figure.value), _interval(figure.ci95), f"{figure.num_pairs:,}", figure.note)
        for name, figure in named
    ]
    table = _table(("figure", "value", "95 % interval", "pairs", "note"), rows)
    counts = [(str(number), f"{count:,}") for number, count in figures.annotators_per_pair.items()]
    return (
        f"{table}\n\nLeft and right are the pair's own sides, the same texts for everybody, and which text is called "
        "left is arbitrary; so kappa and alpha are close to twice the agreement minus one. Intervals are from "
        "resampling pairs. Gold pairs and repeats are not in these "
        f"figures.\n\n{_table(('labels on a pair', 'pairs'), counts)}"
    )


def _annotators(card: CardFacts) -> str:
    reliability = card.facts["reliability"]
    header = (
        "annotator", "labels", "skips", "median seconds", "left as displayed", "with the others' majority",
        "right on gold", "same again on repeats", *(["reliability"] if reliability else []),
    )  # fmt: skip
    rows = [
        (
            one.annotator,
            f"{one.num_labels:,}",
            f"{one.num_skips:,}",
            _number(one.median_seconds, digits=1),
            _side(one.side_bias),
            _rate(one.consensus),
            _rate(one.gold),
            _rate(one.self_consistency),
            *([_number(reliability.get(one.annotator))] if reliability else []),
        )
        for one in card.figures.annotators
    ]
    names = "Names are replaced by pseudonyms. " if not card.facts["with_names"] else ""
    overall = f"All together: left as displayed {_side(card.figures.side_bias)}."
    return f"{names}Rates have their 95 % Wilson interval.\n\n{_table(header, rows)}\n\n{overall}"


def _answers(figures: LabelStatistics) -> str:
    choices = [
        (choice.replace("_", " "), f"{count:,}", f"{figures.displayed_choices[choice]:,}")
        for choice, count in figures.choices.items()
    ]
    lengths = figures.response_lengths
    words = [
        ("chosen", _number(lengths.chosen_median_words, digits=1), _number(lengths.chosen_mean_words, digits=1)),
        ("rejected", _number(lengths.rejected_median_words, digits=1), _number(lengths.rejected_mean_words, digits=1)),
    ]
    sections = [
        _table(("choice", "by own side", "as displayed, with gold and repeats"), choices),
        _table(("answer", "median words", "mean words"), words),
        f"The chosen answer is the longer one in {_rate(lengths.chosen_longer)} pairs with a majority; equal lengths "
        "count one half.",
    ]
    if figures.labels_in_time:
        sections.append(_table(("labels received from (UTC)", "labels"), _busy_times(figures)))
    return "\n\n".join(sections)


def _busy_times(figures: LabelStatistics) -> list[tuple[str, str]]:
    return [(one.start, f"{one.num_labels:,}") for one in figures.labels_in_time if one.num_labels]


def _warnings(figures: LabelStatistics) -> str:
    if not figures.warnings:
        return ""
    return "## Warnings\n\n" + "\n".join(f"- {_plain(text)}" for text in figures.warnings)


def _limits(card: CardFacts) -> str:
    names = (
        "Names of annotators are in the files."
        if card.facts["with_names"]
        else "Pseudonyms are hashes of names: they hide a name, but whoever guesses it can check the guess."
    )
    return (
        "## Limits\n\n"
        "The preferences are those of the annotators above, under these guidelines, on these prompts. Agreement bounds "
        "what a model can learn: one person's label is not more predictable than people are alike. Longer answers may "
        "be chosen for their length; compare with the table above. Nothing was filtered for harmful or private "
        f"content. {names}"
    )


# --- Markdown -------------------------------------------------------------------------------------------------------


def _table(header: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    lines = [header, ["---"] * len(header), *rows]
    return "\n".join("| " + " | ".join(_plain(cell) for cell in line) + " |" for line in lines)


def _plain(text: str) -> str:
    """Text that cannot leave its place: no line breaks, no cell ends, no HTML."""
    text = " ".join(text.split())
    for mark, instead in (("&", "&amp;"), ("<", "&lt;"), (">", "&gt;"), ("|", "\\|"), ("[", "\\["), ("!", "\\!")):
        text = text.replace(mark, instead)
    return text


def _fenced(text: str) -> str:
    """The text in a code block whose fence is longer than any in the text."""
    longest = run = 0
    for letter in text:
        run = run + 1 if letter == "`" else 0
        longest = max(longest, run)
    fence = "`" * max(3, longest + 1)
    return f"{fence}text\n{text.rstrip()}\n{fence}"


def _number(value: float | None, *, digits: int = 3) -> str:
    return "none" if value is None else f"{value:.{digits}f}"


def _interval(bounds: tuple[float, float] | None) -> str:
    return "none" if bounds is None else f"{bounds[0]:.3f} to {bounds[1]:.3f}"


def _rate(rate: Rate) -> str:
    if rate.rate is None or rate.ci95 is None:
        return "none"
    return f"{rate.rate:.1%} of {rate.num_trials:,} ({rate.ci95[0]:.1%} to {rate.ci95[1]:.1%})"


def _side(bias: SideBias) -> str:
    p_value = "" if bias.p_value is None else f", p = {bias.p_value:.2g}"
    return _rate(bias.left_as_displayed) + p_value
