"""From labels to a data set: preference rows that trainers read, all labels, a card with every figure, a manifest."""

import contextlib
import hashlib
import json
import os
import shutil
import statistics
import uuid
from collections import Counter, defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from prefloop import __version__
from prefloop.collection.aggregation import (
    Aggregation,
    AggregationMethod,
    BothBadRule,
    TieRule,
    Verdict,
    aggregate,
)
from prefloop.collection.label_records import LabelEvent, ProjectSettings, StoredPair
from prefloop.collection.label_statistics import LabelStatistics, label_statistics
from prefloop.data.label_card import CardFacts, data_set_card
from prefloop.data.label_rows import IMPORTED, label_event_to_row, stored_pair_to_row
from prefloop.data.sources import write_jsonl
from prefloop.data.splits import prompt_key, split_by_prompt
from prefloop.errors import DataError, NothingUsableError, SettingsError
from prefloop.records import Comparison, Label, Prompt

FORMAT = "prefloop labels"
FORMAT_VERSION = 1
DEFAULT_SHARES: Mapping[str, float] = {"train": 0.9, "validation": 0.05, "test": 0.05}
GOLD_PAIR = "gold pair"


@dataclass(frozen=True)
class ExportReport:
    """What was written: rows by file, and why the other pairs gave no preference.

    `num_pairs` is the number of preferences plus the dropped pairs. `notes` are sentences for whoever asked.
    """

    folder: Path
    num_rows: dict[str, int]
    num_pairs: int
    num_preferences: int
    dropped: dict[str, int]
    reliability: dict[str, float]
    statistics: LabelStatistics
    notes: list[str]


def export_preferences(
    pairs: Sequence[StoredPair],
    labels: Sequence[LabelEvent],
    folder: str | Path,
    *,
    aggregation: AggregationMethod = "majority",
    ties: TieRule = "half",
    both_bad: BothBadRule = "tie",
    shares: Mapping[str, float] | None = None,
    min_annotators: int = 1,
    seed: int,
    settings: ProjectSettings,
    include_gold: bool = False,
    with_names: bool = False,
    with_rationales: bool = False,
    prompts_as_messages: bool = False,
    num_events: int | None = None,
    num_resamples: int = 1000,
) -> ExportReport:
    """Writes train.jsonl, validation.jsonl and test.jsonl (those with rows), pairs.jsonl, labels.jsonl, README.md and
    manifest.json into a new folder, or in place of an earlier export.

    `labels` are the current labels. Preferences are split by prompt in the `shares` of train, validation and test (0.9,
    0.05, 0.05 where not given). Gold pairs and their labels are left out unless `include_gold`; repeats never count as
    votes. Annotators get pseudonyms, the same in every export of the project, unless `with_names`; rationales are left
    out unless `with_rationales`. `num_events` is how many events the project's record holds, for the manifest.

    The same input gives the same bytes. Raises DataError where the folder holds something else, where prompts are
    partly strings and partly messages (`prompts_as_messages` makes one user message of a string), or where labels do
    not fit the pairs; NothingUsableError where no pair has a preference; SettingsError for settings that are unknown.
    """
    folder = Path(folder)
    _check_target(folder)
    shares = DEFAULT_SHARES if shares is None else shares
    if unknown := set(shares) - set(DEFAULT_SHARES):
        raise SettingsError(f"shares has {', '.join(sorted(unknown))}; the parts are {', '.join(DEFAULT_SHARES)}.")
    if not with_names:
        labels = _under_pseudonyms(labels, key=f"{settings.name}/{settings.seed}")
    if not with_rationales:
        labels = [replace(label, rationale="") for label in labels]
    figures = label_statistics(pairs, labels, seed=seed, num_resamples=num_resamples)
    used = [pair for pair in pairs if include_gold or pair.gold_choice is None]
    used_ids = {pair.comparison.pair_id for pair in used}
    kept_labels = [label for label in labels if label.pair_id in used_ids]
    verdicts = _verdicts(used, kept_labels, aggregation, ties, both_bad, min_annotators)
    dropped = verdicts.dropped | ({GOLD_PAIR: len(pairs) - len(used)} if len(used) < len(pairs) else {})
    if not verdicts.verdicts:
        reasons = ", ".join(f"{count} {reason}" for reason, count in dropped.items()) or "there are no pairs"
        raise NothingUsableError(f"None of the {len(pairs)} pairs has a preference ({reasons}). Collect more labels.")
    parts = _parts(_preference_rows(used, verdicts, kept_labels, prompts_as_messages), shares, seed)
    notes = [f"{name}.jsonl would be empty and is left out." for name in shares if not parts.get(name)]
    if not verdicts.converged:
        notes.append("The reliabilities of annotators had not settled when the iterations ran out.")
    rows: dict[str, list[dict[str, Any]]] = {f"{name}.jsonl": parts[name] for name in DEFAULT_SHARES if parts.get(name)}
    rows["pairs.jsonl"] = [stored_pair_to_row(pair) for pair in used]
    rows["labels.jsonl"] = [label_event_to_row(label) for label in kept_labels]
    facts = {
        "aggregation": aggregation, "ties": ties, "both_bad": both_bad, "min_annotators": min_annotators,
        "shares": dict(shares), "seed": seed, "include_gold": include_gold, "with_names": with_names,
        "with_rationales": with_rationales, "num_pairs": len(pairs), "num_preferences": len(verdicts.verdicts),
        "dropped": dropped, "reliability": verdicts.reliability, "num_events": num_events,
        "num_imported": sum(label.client_version == IMPORTED for label in kept_labels), "notes": notes,
    }  # fmt: skip
    _write(folder, rows, facts, settings, figures)
    num_rows = {name: len(content) for name, content in rows.items()}
    num_preferences = len(verdicts.verdicts)
    return ExportReport(folder, num_rows, len(pairs), num_preferences, dropped, verdicts.reliability, figures, notes)


def pseudonyms(names: Iterable[str], *, key: str) -> dict[str, str]:
    """A pseudonym for each name, which depends on the name and the key alone.

    Whoever knows a name and the key can compute it: it keeps names out of sight, it is no secret.
    """
    found: dict[str, str] = {}
    for name in sorted(set(names)):
        digest = hashlib.sha256(f"{key}/{name}".encode()).hexdigest()
        found[name] = f"annotator-{digest[:10]}"
    assert len(set(found.values())) == len(found), "two names share a pseudonym"
    return found


def _under_pseudonyms(labels: Sequence[LabelEvent], *, key: str) -> list[LabelEvent]:
    pseudonym_of = pseudonyms((label.annotator for label in labels), key=key)
    return [replace(label, annotator=pseudonym_of[label.annotator]) for label in labels]


def _verdicts(
    pairs: Sequence[StoredPair],
    labels: Iterable[LabelEvent],
    aggregation: AggregationMethod,
    ties: TieRule,
    both_bad: BothBadRule,
    min_annotators: int,
) -> Aggregation:
    votes = [
        Label(label.pair_id, label.annotator, label.choice)
        for label in labels
        if label.kind != "repeat" and label.choice is not None
    ]
    comparisons = [pair.comparison for pair in pairs]
    return aggregate(
        comparisons, votes, method=aggregation, ties=ties, both_bad=both_bad, min_annotators=min_annotators
    )


# --- rows -----------------------------------------------------------------------------------------------------------


def _preference_rows(
    pairs: Sequence[StoredPair], verdicts: Aggregation, labels: Iterable[LabelEvent], prompts_as_messages: bool
) -> list[tuple[Prompt, dict[str, Any]]]:
    """Each preference's prompt and row, in the order of the pairs."""
    num_strings = sum(isinstance(verdict.comparison.prompt, str) for verdict in verdicts.verdicts)
    if 0 < num_strings < len(verdicts.verdicts) and not prompts_as_messages:
        raise DataError(
            f"{num_strings} of {len(verdicts.verdicts)} prompts are strings, the others are messages; trainers read "
            "one form. Export with prompts_as_messages, which makes one user message of each string."
        )
    strengths: defaultdict[str, list[int]] = defaultdict(list)
    for label in labels:
        if label.strength is not None and label.kind != "repeat":
            strengths[label.pair_id].append(label.strength)
    chosen_by = {pair.comparison.pair_id: pair.chosen_by for pair in pairs}
    return [
        (
            verdict.comparison.prompt,
            _preference_row(
                verdict,
                strengths[verdict.comparison.pair_id],
                as_messages=prompts_as_messages or not isinstance(verdict.comparison.prompt, str),
                chosen_by=chosen_by[verdict.comparison.pair_id],
            ),
        )
        for verdict in verdicts.verdicts
    ]


def _preference_row(verdict: Verdict, strengths: Sequence[int], *, as_messages: bool, chosen_by: str) -> dict[str, Any]:
    """A row of train.jsonl. `strength` is the mean of those given, whichever side they were given for."""
    comparison: Comparison = verdict.comparison
    chosen, rejected = comparison.left, comparison.right
    if verdict.chosen == "right":
        chosen, rejected = rejected, chosen
    return {
        "prompt": _messages_of(comparison.prompt) if as_messages else comparison.prompt,
        "chosen": _answer(chosen.text, as_messages),
        "rejected": _answer(rejected.text, as_messages),
        "agreement": verdict.agreement,
        "num_annotators": verdict.num_annotators,
        "strength": statistics.fmean(strengths) if strengths else None,
        "pair_id": comparison.pair_id,
        "prompt_id": prompt_id(comparison.prompt),
        "chosen_source": chosen.source,
        "rejected_source": rejected.source,
        "chosen_ended": chosen.ended,
        "rejected_ended": rejected.ended,
        "chosen_by": chosen_by,
    }


def prompt_id(prompt: Prompt) -> str:
    """A short name of the prompt, the same wherever the prompt is the same."""
    return hashlib.sha256(prompt_key(prompt).encode()).hexdigest()[:16]


def _messages_of(prompt: Prompt) -> list[dict[str, str]]:
    if isinstance(prompt, str):
        return [{"role": "user", "content": prompt}]
    return [{"role": message.role, "content": message.content} for message in prompt]


def _answer(text: str, as_messages: bool) -> str | list[dict[str, str]]:
    return [{"role": "assistant", "content": text}] if as_messages else text


def _parts(
    rows: Sequence[tuple[Prompt, dict[str, Any]]], shares: Mapping[str, float], seed: int
) -> dict[str, list[dict[str, Any]]]:
    prompts = split_by_prompt([prompt for prompt, _ in rows], shares=shares, seed=seed)
    part_of = {prompt_key(prompt): name for name, members in prompts.items() for prompt in members}
    parts: defaultdict[str, list[dict[str, Any]]] = defaultdict(list)
    for prompt, row in rows:
        parts[part_of[prompt_key(prompt)]].append(row)
    return dict(parts)


# --- the folder -----------------------------------------------------------------------------------------------------


def _check_target(folder: Path) -> None:
    """Raises DataError unless the folder is absent, empty, or an earlier export and nothing else."""
    if not folder.exists():
        return
    if not folder.is_dir():
        raise DataError(f"{folder} is a file; give a folder that does not exist yet.")
    found = {child.name for child in folder.iterdir()}
    if not found:
        return
    written: set[str] = set()
    with contextlib.suppress(OSError, ValueError, KeyError, TypeError):
        manifest = json.loads((folder / "manifest.json").read_text(encoding="utf-8"))
        if manifest["format"] == FORMAT:
            written = {"manifest.json", *manifest["files"]}
    if foreign := sorted(found - written):
        raise DataError(
            f"{folder} holds {', '.join(foreign[:5])}, which no export of labels wrote; it is left as it is. Give a "
            "new folder, or one that holds an export only."
        )


def _write(
    folder: Path,
    rows: Mapping[str, list[dict[str, Any]]],
    facts: Mapping[str, Any],
    settings: ProjectSettings,
    figures: LabelStatistics,
) -> None:
    """Everything is written beside the folder and renamed at the end, so the folder is never half an export."""
    folder.parent.mkdir(parents=True, exist_ok=True)
    staging = _sibling(folder, "tmp")
    staging.mkdir()
    try:
        for name, content in rows.items():
            write_jsonl(staging / name, content)
        with_messages = isinstance(next(iter(rows.values()))[0]["prompt"], list)
        num_rows = {name: len(content) for name, content in rows.items()}
        card = data_set_card(CardFacts(settings, facts, num_rows, with_messages, figures))
        _write_text(staging / "README.md", card)
        files = {
            name: {"sha256": hashlib.sha256((staging / name).read_bytes()).hexdigest(), "rows": num_rows.get(name)}
            for name in (*rows, "README.md")
        }
        manifest = {
            "format": FORMAT,
            "version": FORMAT_VERSION,
            "prefloop": __version__,
            **facts,
            "num_labels_by_kind": Counter(row["kind"] for row in rows["labels.jsonl"]),
            "project": settings.model_dump(),
            "files": files,
        }
        _write_text(staging / "manifest.json", json.dumps(manifest, indent=2, ensure_ascii=False) + "\n")
        _put_in_place(staging, folder)
    finally:
        shutil.rmtree(staging, ignore_errors=True)


def _write_text(path: Path, text: str) -> None:
    with path.open("wb") as file:
        file.write(text.encode())
        file.flush()
        os.fsync(file.fileno())


def _sibling(folder: Path, what: str) -> Path:
    return folder.with_name(f".{folder.name}.{uuid.uuid4().hex[:8]}.{what}")


def _put_in_place(staging: Path, folder: Path) -> None:
    _check_target(folder)
    if not folder.exists():
        os.rename(staging, folder)
        return
    earlier = _sibling(folder, "old")
    os.rename(folder, earlier)
    try:
        os.rename(staging, folder)
    except OSError:
        os.rename(earlier, folder)
        raise
    shutil.rmtree(earlier)
