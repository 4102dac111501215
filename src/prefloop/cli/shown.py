"""What the verbs print: the table of policies, samples before and after, the plan. Rich is imported when needed."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any


def percent(value: float | None) -> str:
    return "–" if value is None else f"{100 * value:.1f} %"


def decimals(value: float | None, digits: int = 2) -> str:
    """A number as a person reads it, without a minus before zero; a dash where there is none."""
    return "–" if value is None else f"{round(value, digits) + 0.0:.{digits}f}"


def policy_table(policies: Mapping[str, Mapping[str, Any]]) -> None:
    """Success with its interval, KL, length and diversity, a line per policy."""
    from rich.box import SIMPLE_HEAD
    from rich.console import Console
    from rich.table import Table

    # In 80 columns every figure stays whole; only a long name goes on in a second line.
    table = Table(
        title="On held-out prompts", title_justify="left", header_style="bold", box=SIMPLE_HEAD, collapse_padding=True
    )
    for heading in ("policy", "success", "95 % interval", "n", "KL (nats)", "tokens", "distinct-2"):
        is_name = heading == "policy"
        table.add_column(heading, justify="left" if is_name else "right", no_wrap=not is_name, overflow="fold")
    for name, row in policies.items():
        low, high = row["ci95"]
        bound = "≤ " if row.get("kl_is_bound") else ""
        table.add_row(
            name,
            percent(row["success_rate"]),
            f"{100 * low:.1f}–{100 * high:.1f} %",
            f"{row['n']:,}",
            bound + decimals(row["kl_from_reference"]),
            decimals(row["mean_response_tokens"], 1),
            decimals(row["distinct_2"], 3),
        )
    Console().print(table)


def before_and_after(turned: Mapping[str, Any]) -> None:
    """Prompts that the first policy got wrong and the last one right, and how many of them there are."""
    from rich.columns import Columns
    from rich.console import Console
    from rich.panel import Panel
    from rich.text import Text

    console = Console()
    before, after = turned["before"], turned["after"]
    for one in turned["samples"]:
        console.print(Text(one["prompt"] or "(from the start token)", style="bold"))
        width = max(30, (console.width - 4) // 2)
        panels = [
            Panel(
                Text(one["answers"][name]["text"]),
                title=f"{name}: {'success' if one['answers'][name]['success'] else 'not a success'}",
                width=width,
            )
            for name in (before, after)
        ]
        console.print(Columns(panels))
    print(
        f"On the same {turned['n']:,} prompts {after} succeeds {turned['num_gained']:,} times where {before} does not, "
        f"and {before} {turned['num_lost']:,} times where {after} does not."
    )


def figures(summary: Mapping[str, Any]) -> None:
    """The lines between the samples and the table: agreement and reward model."""
    dataset = summary.get("dataset")
    if dataset:
        print(
            f"choices: {dataset['pairs']:,} pairs, {dataset['annotators_per_pair']:.0f} annotators each, "
            f"agreement {percent(dataset['agreement_rate'])}, "
            f"Krippendorff's alpha {decimals(dataset['krippendorff_alpha'])}"
        )
    reward = summary.get("reward_model")
    if reward and reward.get("auc_concordance") is not None:
        print(
            f"reward model: orders {percent(reward['auc_concordance'])} of {reward['n']:,} held-out pairs as "
            f"{reward['against']} does (oriented AUC {decimals(reward['auc_oriented'], 3)}, "
            f"pooled AUC {decimals(reward['auc_pooled'], 3)})"
        )
    elif reward and reward.get("roc_auc") is not None:
        print(
            f"reward model: classifies {percent(reward['accuracy'])} of {reward['n']:,} held-out texts "
            f"(ROC-AUC {decimals(reward['roc_auc'], 3)})"
        )
    for name, one in summary.get("reward_models", {}).items():
        print(
            f"reward model of {name}: orders {percent(one['auc_concordance'])} of {one['n']:,} pairs "
            f"as {one['against']} does"
        )
    for judge in (summary.get("judge"), summary.get("second_judge")):
        if judge and judge.get("accuracy") is not None:
            print(
                f"{judge['name']}: {percent(judge['accuracy'])} right on {judge['n']:,} "
                f"{'pairs' if 'reward_model' in judge else 'texts'} of {judge['tested_on']}"
            )
    for alarm in summary.get("alarms", []):
        place = alarm["stage"] if alarm["step"] is None else f"{alarm['stage']}, step {alarm['step']}"
        print(f"ALARM in {place}: {alarm['message']}")


def pipeline_result(summary: Mapping[str, Any], folder: Path) -> None:
    """How a pipeline ends: samples, figures, table, seconds, report, next commands."""
    policies = summary.get("policies")
    if summary.get("turned"):
        before_and_after(summary["turned"])
    figures(summary)
    if policies:
        policy_table(policies)
    seconds = sum(value for value in summary["wall_seconds"].values() if value)
    print(f"{seconds:.0f} seconds of work in all; everything is in {folder}")


def plan_table(planned: Sequence[Any]) -> None:
    """The stages of a plan, a line each."""
    width = max(len(step.name) for step in planned)
    for number, step in enumerate(planned, start=1):
        reads = f"  (from {', '.join(step.parents)})" if step.parents else ""
        print(f"{number:2}. {step.name:<{width}}  {step.kind:<18} {step.action}{reads}")
