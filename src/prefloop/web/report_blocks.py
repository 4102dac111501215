"""From a summary's figures to what a report shows: a verdict in words, tables, charts, samples. No file is read here.

Every block is made only from what is there; a figure that is missing or null shows as an en dash.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from markupsafe import Markup

from prefloop.web.charts import Estimate, calibration_chart, dot_and_whisker_chart
from prefloop.web.report_formats import (
    DASH,
    group,
    groups,
    heading,
    is_number,
    number,
    number_interval,
    pair,
    percent,
    percent_interval,
    policy_name,
    words,
)

VERDICT_ORDER = ("ppo", "dpo", "best_of_n")
"""Which policy the verdict speaks of: the first of these that was measured, against `sft`."""

COLUMN_NAMES = {
    "num_labels": "Labels",
    "num_skips": "Skips",
    "left_share": "Chose the left side",
    "agreement_with_others": "Agreement with others",
}
SHARE_ENDINGS = ("_share", "_rate", "accuracy", "agreement", "agreement_with_others")

AUC_MEANINGS = {
    "auc_concordance": ("Concordance", "how often the chosen answer of a pair outscores its rejected one"),
    "auc_oriented": ("Oriented margin", "how well the margin tells which side won; rewards large, correct margins"),
    "auc_pooled": ("Pooled", "any chosen answer against any rejected one, across prompts; needs comparable scores"),
    "roc_auc": ("Single texts", "how well the score tells texts of both labels apart"),
}


@dataclass(frozen=True)
class Answer:
    """One answer in a sample. `success` is None where nobody judged it; `verdict` says it in the judge's terms."""

    title: str
    text: str
    success: bool | None
    facts: str
    verdict: str = ""


@dataclass(frozen=True)
class SampleBlock:
    """A prompt with its answers side by side."""

    prompt: str
    answers: tuple[Answer, ...]


@dataclass(frozen=True)
class Table:
    """Cells as they are shown; the first of each row is its heading. `ends_in_words` sets the last column as text."""

    caption: str
    columns: tuple[str, ...]
    rows: tuple[tuple[str, ...], ...]
    ends_in_words: bool = False


def policies_of(summary: Mapping[str, Any]) -> dict[str, Mapping[str, Any]]:
    """The measured policies by name, in the summary's order."""
    return {name: one for name, one in group(summary, "policies").items() if isinstance(one, Mapping)}


def verdict(policies: Mapping[str, Mapping[str, Any]]) -> str | None:
    """One sentence: what the trained policy does, beside what it started from. None without such figures."""
    name, best, start = _compared(policies)
    if best is None:
        return None
    amount = f"{number(best['n'])} " if is_number(best.get("n")) else ""
    well = "questions without a flaw" if best.get("flaws") else "prompts well"
    if best.get("is_win_rate"):
        well = "prompts better than other answers of the imitator"
    asked = f"{amount}held-out {well}"
    sentence = f"{_name(name, best)} answers {_rate(best, of=asked)}"
    return f"{sentence}." if start is None else f"{sentence}, the imitator it started from {_rate(start)}."


def verdict_note(policies: Mapping[str, Mapping[str, Any]]) -> str | None:
    """What the intervals of the verdict's two figures allow to say; None without both."""
    _, best, start = _compared(policies)
    own, other = pair(best.get("ci95") if best else None), pair(start.get("ci95") if start else None)
    if own is None or other is None:
        return None
    if own[0] > other[1]:
        return "The 95 % intervals do not overlap."
    if own[1] < other[0]:
        return "It is worse than what it started from: the 95 % intervals do not overlap."
    return "The 95 % intervals overlap, so this is no proof of a difference."


def _compared(
    policies: Mapping[str, Mapping[str, Any]],
) -> tuple[str, Mapping[str, Any] | None, Mapping[str, Any] | None]:
    """Name and figures of the policy that the verdict speaks of, and the figures of what it started from."""
    rated = {name: one for name, one in policies.items() if is_number(one.get("success_rate"))}
    name = next((name for name in VERDICT_ORDER if name in rated), "")
    return name, rated.get(name), rated.get("sft")


def _name(name: str, policy: Mapping[str, Any]) -> str:
    """A policy's name; best of n says of how many."""
    num_candidates = policy.get("n_candidates")
    return f"Best of {number(num_candidates)}" if is_number(num_candidates) else policy_name(name)


def _rate(policy: Mapping[str, Any], *, of: str = "") -> str:
    parts = [
        percent(policy["success_rate"], num_decimals=0),
        f"of {of}" if of else "",
        percent_interval(policy.get("ci95"), num_decimals=0),
    ]
    return " ".join(part for part in parts if part)


def policy_table(policies: Mapping[str, Mapping[str, Any]]) -> Table:
    """One row per policy: what it reaches, and how far from the reference. An amount that all share goes on top."""
    amounts = {number(one.get("n")) for one in policies.values()}
    amount = f"{amounts.pop()} " if len(amounts) == 1 and DASH not in amounts else ""
    judges = sorted({str(one["judged_by"]) for one in policies.values() if one.get("judged_by")})
    has_second = any(is_number(one.get("second_judge_rate")) for one in policies.values())
    rows = [
        (
            _name(name, one),
            percent(one.get("success_rate")),
            percent_interval(one.get("ci95")) or DASH,
            *(() if amount else (number(one.get("n")),)),
            *((percent(one.get("second_judge_rate")),) if has_second else ()),
            ("≤ " if one.get("kl_is_bound") else "") + number(one.get("kl_from_reference")),
        )
        for name, one in policies.items()
    ]
    return Table(
        f"The same {amount}held-out prompts for every policy" + (f", judged by {', '.join(judges)}" if judges else ""),
        (
            "Policy",
            "Wins" if _are_wins(policies) else "Success",
            "95 % interval",
            *(() if amount else ("n",)),
            *(("Second judge",) if has_second else ()),
            "KL, nats",
        ),
        tuple(rows),
    )


def text_table(policies: Mapping[str, Mapping[str, Any]]) -> Table | None:
    """What the answers look like, in the columns that were measured; None without one."""
    formats = {
        "mean_response_tokens": ("Mean tokens", number),
        "median_words": ("Median words", number),
        "distinct_2": ("Distinct-2", number),
        "unique_share": ("Unique", percent),
        "ended_share": ("Ended", percent),
        "mean_score": ("Mean score", number),
    }
    measured = [key for key in formats if any(is_number(one.get(key)) for one in policies.values())]
    if not measured:
        return None
    return Table(
        "Length, variety and the reward model's score",
        ("Policy", *(formats[key][0] for key in measured)),
        tuple(
            (_name(name, one), *(formats[key][1](one.get(key)) for key in measured)) for name, one in policies.items()
        ),
    )


def policy_chart(policies: Mapping[str, Mapping[str, Any]]) -> Markup | None:
    """Success of every policy with its interval; None where nothing was rated."""
    rated = {name: one for name, one in policies.items() if is_number(one.get("success_rate"))}
    if not rated:
        return None
    estimates = [
        Estimate(
            _name(name, one),
            one["success_rate"],
            pair(one.get("ci95")),
            is_emphasised=name not in ("sft", "sft_greedy", "ppo_unguarded"),
        )
        for name, one in rated.items()
    ]
    what = "wins" if _are_wins(policies) else "success"
    return dot_and_whisker_chart(
        estimates, label=f"{what.capitalize()} of each policy", chart_id="policies", x_label=what
    )


def _are_wins(policies: Mapping[str, Any]) -> bool:
    """Whether success means to outscore other answers of the reference."""
    return any(isinstance(one, Mapping) and one.get("is_win_rate") for one in policies.values())


def flaw_table(policies: Mapping[str, Mapping[str, Any]]) -> Table | None:
    """How often each flaw occurs in each policy's answers; None where no flaw was counted."""
    counted = {name: group(one, "flaws") for name, one in policies.items() if group(one, "flaws")}
    flaws = list(dict.fromkeys(flaw for by_flaw in counted.values() for flaw in by_flaw))
    if not flaws:
        return None
    return Table(
        "Share of answers with each flaw",
        ("Flaw", *(_name(name, policies[name]) for name in counted)),
        tuple((heading(flaw), *(percent(by_flaw.get(flaw, 0.0)) for by_flaw in counted.values())) for flaw in flaws),
    )


def round_table(dataset: Mapping[str, Any]) -> Table | None:
    """The rounds of collection; None for a single one."""
    rounds = groups(dataset, "rounds")
    if len(rounds) < 2:
        return None
    rows = tuple(
        (
            f"Round {number(one.get('round', index))}",
            number(one.get("pairs")),
            number(one.get("annotators_per_pair")),
            f"{percent(one.get('agreement_rate'))} {percent_interval(one.get('agreement_rate_ci95'))}".strip(),
            f"{number(one.get('krippendorff_alpha'))} {number_interval(one.get('krippendorff_alpha_ci95'))}".strip(),
        )
        for index, one in enumerate(rounds, start=1)
    )
    return Table(
        "Collection by round", ("Round", "Pairs", "Annotators per pair", "Agreement", "Krippendorff's alpha"), rows
    )


def agreement_chart(dataset: Mapping[str, Any]) -> Markup | None:
    """How far annotators agree, by round of labels, and below each annotator with the others; None without a figure.

    Where simulated annotators stood beside people, the people by themselves have a row.
    """
    rounds = groups(dataset, "rounds")
    is_one = len(rounds) < 2
    rows: list[tuple[str, Mapping[str, Any]]] = [("All annotators" if is_one else "All rounds", dataset)]
    for index, one in enumerate(rounds, start=1):
        name = f"Round {number(one.get('round', index))}"
        rows += [] if is_one else [(name, one)]
        rows += [("People alone" if is_one else f"{name}, people", group(one, "people"))]
    estimates = [
        Estimate(name, one["agreement_rate"], pair(one.get("agreement_rate_ci95")))
        for name, one in rows
        if is_number(one.get("agreement_rate"))
    ]
    estimates += [
        Estimate(f"{name}, with others", one["agreement_with_others"], is_emphasised=False)
        for name, one in group(dataset, "per_annotator").items()
        if isinstance(one, Mapping) and is_number(one.get("agreement_with_others"))
    ]
    if not estimates:
        return None
    return dot_and_whisker_chart(
        estimates, label="Agreement of annotators", chart_id="agreement", x_label="same choice on a pair"
    )


def annotator_table(dataset: Mapping[str, Any]) -> Table | None:
    """One row per annotator; None where there are none."""
    annotators = {name: one for name, one in group(dataset, "per_annotator").items() if isinstance(one, Mapping)}
    if not annotators:
        return None
    columns = [
        column
        for column in dict.fromkeys(column for one in annotators.values() for column in one)
        if all(not isinstance(one.get(column), Mapping | list) for one in annotators.values())
    ]
    rows = tuple(
        (name, *((percent if column.endswith(SHARE_ENDINGS) else number)(one.get(column)) for column in columns))
        for name, one in annotators.items()
    )
    return Table("By annotator", ("Annotator", *(COLUMN_NAMES.get(one, heading(one)) for one in columns)), rows)


def accuracy_chart(reward_model: Mapping[str, Any]) -> Markup | None:
    """The reward model's accuracy between its baselines and its ceiling; None without an accuracy."""
    found = [
        ("Reward model", reward_model.get("accuracy"), reward_model.get("accuracy_ci95")),
        *(
            (label, *_baseline(reward_model.get(name)))
            for label, name in (("Bag of words", "bag_of_words_accuracy"), ("Length alone", "length_only_accuracy"))
        ),
    ]
    estimates = [
        Estimate(label, value, pair(interval), is_emphasised=label == "Reward model")
        for label, value, interval in found
        if is_number(value)
    ]
    if not is_number(reward_model.get("accuracy")):
        return None
    ceiling = reward_model.get("accuracy_ceiling")
    return dot_and_whisker_chart(
        estimates,
        label="Accuracy on held-out pairs",
        chart_id="reward-model",
        x_label="accuracy on held-out pairs",
        ceiling=ceiling if is_number(ceiling) else None,
    )


def _baseline(value: Any) -> tuple[Any, Any]:
    """Accuracy and interval of a baseline that is given as a number or as a record."""
    return (value.get("accuracy"), value.get("accuracy_ci95")) if isinstance(value, Mapping) else (value, None)


def calibration_of(reward_model: Mapping[str, Any]) -> Markup | None:
    """The calibration curve; None without one. A bin is a list or a record of predicted, observed and count."""
    given = reward_model.get("calibration")
    bins = []
    for one in given if isinstance(given, list | tuple) else ():
        if isinstance(one, Mapping):
            one = (one.get("mean_predicted"), one.get("observed_share"), one.get("count"))
        figures = [float(figure) for figure in one if is_number(figure)] if isinstance(one, list | tuple) else []
        if len(figures) == 3:
            bins.append((figures[0], figures[1], figures[2]))
    return calibration_chart(bins, chart_id="calibration") if bins else None


def auc_table(reward_model: Mapping[str, Any]) -> Table | None:
    """The three AUCs with what each means; None without one."""
    rows = tuple(
        (name, number(reward_model[key]), meaning)
        for key, (name, meaning) in AUC_MEANINGS.items()
        if is_number(reward_model.get(key))
    )
    if not rows:
        return None
    return Table("What is called AUC, by what it compares", ("AUC", "Value", "What it says"), rows, ends_in_words=True)


def reward_models_table(summary: Mapping[str, Any]) -> Table | None:
    """Reward models that were also looked at elsewhere, by what they are reported as; None without one."""
    rows = tuple(
        (name, percent(one.get("auc_concordance")), percent_interval(one.get("accuracy_ci95")), number(one.get("n")))
        for name, one in group(summary, "reward_models").items()
        if isinstance(one, Mapping)
    )
    if not rows:
        return None
    return Table("The reward model elsewhere", ("Reward model of", "Pairs in order", "95 % interval", "n"), rows)


def sample_blocks(summary: Mapping[str, Any]) -> list[SampleBlock]:
    """The summary's samples: one prompt each, answered by several policies."""
    policies = group(summary, "policies")
    has_rubric = any(isinstance(one, Mapping) and one.get("flaws") for one in policies.values())
    good, bad = ("no flaw", "flawed") if has_rubric else ("success", "no success")
    if _are_wins(policies):
        good, bad = "wins", "does not win"
    return [
        SampleBlock(
            prompt_words(sample.get("prompt")),
            tuple(
                Answer(
                    _name(name, group(policies, name)),
                    str(answer.get("text", "")),
                    answer["success"] if isinstance(answer.get("success"), bool) else None,
                    f"score {number(answer['score'])}" if is_number(answer.get("score")) else "",
                    good if answer.get("success") else bad,
                )
                for name, answer in group(sample, "answers").items()
                if isinstance(answer, Mapping)
            ),
        )
        for sample in groups(summary, "samples")
    ]


def samples_over_time(rows: Sequence[Mapping[str, Any]]) -> list[SampleBlock]:
    """The first and the last completion of each prompt that was sampled at fixed steps."""
    by_prompt: dict[str, list[Mapping[str, Any]]] = {}
    for row in rows:
        if row.get("kind") == "evaluate":
            by_prompt.setdefault(prompt_words(row.get("prompt")), []).append(row)
    return [
        SampleBlock(prompt, tuple(_answer_at_step(row) for row in ([seen[0], seen[-1]] if len(seen) > 1 else seen)))
        for prompt, seen in by_prompt.items()
    ]


def _answer_at_step(row: Mapping[str, Any]) -> Answer:
    details = group(row, "details")
    facts = ", ".join(f"{words(name)} {number(value)}" for name, value in details.items() if is_number(value))
    return Answer(f"Step {number(row['step'])}", str(row.get("completion", "")), None, facts)


def prompt_words(prompt: Any) -> str:
    """A prompt as a person reads it: itself, or its messages with their roles."""
    if not isinstance(prompt, list | tuple):
        return str(prompt)
    turns = [one if isinstance(one, Mapping) else {} for one in prompt]
    if len(turns) == 1:
        return str(turns[0].get("content", ""))
    return "\n".join(f"{turn.get('role', '')}: {turn.get('content', '')}" for turn in turns)
