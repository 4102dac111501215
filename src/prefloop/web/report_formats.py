"""How a report writes figures and names, and how it reads them where they may be missing or null."""

import math
from collections.abc import Mapping, Sequence
from typing import Any, TypeGuard

DASH = "\u2013"
SPACE = "\u00a0"
"""The first stands for a figure that is missing, the second keeps a figure and its unit on one line."""

ABBREVIATIONS = frozenset({"sft", "dpo", "ppo", "kl", "auc"})
POLICY_NAMES = {"sft_greedy": "SFT, greedy", "ppo_unguarded": "PPO, unguarded"}
"""The names that are more than their words."""


def number(value: Any) -> str:
    """A number with three significant digits, or whole with thousands separated; an en dash for none."""
    if isinstance(value, str):
        return value
    if isinstance(value, bool):
        return "yes" if value else "no"
    if not is_number(value):
        return DASH
    if float(value).is_integer() and abs(value) < 1e15:
        text = f"{int(value):,}"
    elif abs(value) >= 1000:
        text = f"{value:,.0f}"
    else:
        text = f"{value:.3g}"
    return text.replace("-", "\u2212")


def percent(share: Any, *, num_decimals: int = 1) -> str:
    """A share in [0, 1] in percent; an en dash for none."""
    return f"{100 * share:.{num_decimals}f}{SPACE}%" if is_number(share) else DASH


def percent_interval(interval: Any, *, num_decimals: int = 1) -> str:
    """Bounds of a share, `[88 to 93]` in percent; empty for none, because it stands behind its figure."""
    if pair(interval) is None:
        return ""
    return "[{} to {}]".format(*(f"{100 * bound:.{num_decimals}f}" for bound in interval))


def number_interval(interval: Any) -> str:
    """Bounds of a number, `[0.41 to 0.52]`; empty for none."""
    return "" if pair(interval) is None else "[{} to {}]".format(*(number(bound) for bound in interval))


def duration(seconds: Any) -> str:
    """Wall seconds as a person says them; an en dash for none."""
    if not is_number(seconds):
        return DASH
    if round(seconds) < 60:
        return f"{seconds:.{0 if seconds >= 10 else 1}f}{SPACE}s"
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}{SPACE}h {minutes}{SPACE}min" if hours else f"{minutes}{SPACE}min {rest}{SPACE}s"


def words(name: str) -> str:
    """A key of a file as words, the field's abbreviations in capitals."""
    parts = name.replace("evaluate/", "held-out ").replace("_", " ").split(" ")
    return " ".join(part.upper() if part in ABBREVIATIONS else part for part in parts)


def heading(name: str) -> str:
    """A key of a file as words that begin with a capital."""
    text = words(name)
    return text[:1].upper() + text[1:]


def policy_name(name: str) -> str:
    return POLICY_NAMES.get(name, heading(name))


def is_number(value: Any) -> TypeGuard[float]:
    """Whether `value` is a finite number; true and false are none."""
    return isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)


def pair(interval: Any) -> tuple[float, float] | None:
    """Two finite bounds, or None."""
    is_pair = isinstance(interval, Sequence) and len(interval) == 2 and all(is_number(bound) for bound in interval)
    return (interval[0], interval[1]) if is_pair else None


def group(data: Mapping[str, Any], name: str) -> Mapping[str, Any]:
    """The mapping of that name; empty where there is none."""
    found = data.get(name)
    return found if isinstance(found, Mapping) else {}


def groups(data: Mapping[str, Any], name: str) -> list[Mapping[str, Any]]:
    """The mappings in the list of that name; empty where there is none."""
    found = data.get(name)
    return [one for one in found if isinstance(one, Mapping)] if isinstance(found, list | tuple) else []
