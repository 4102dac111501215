"""Exports of other annotation tools: records of Argilla 2 and tasks of Label Studio, each a pair with labels of people.

Argilla: what `dataset.records.to_json` writes ({id, fields, metadata, responses: {question: [{value, user_id}]}}), or
the flat form of its Hugging Face data sets (question.responses, question.responses.users, question.responses.status).
Label Studio: the JSON export ({data, annotations: [{completed_by, result, was_cancelled, lead_time}]}), with the choice
in a Pairwise tag, or in a Choices tag whose values can be mapped.
"""

from collections import Counter
from collections.abc import Mapping
from dataclasses import replace
from typing import Any

from prefloop.data.label_import_forms import pair_of
from prefloop.data.label_import_values import (
    ID_COLUMNS,
    MALFORMED,
    PROMPT_COLUMNS,
    UNKNOWN_CHOICE,
    BadRow,
    GivenLabel,
    GivenRow,
    ImportOptions,
    choice_of,
    json_value,
    name_of,
    number_of,
    others,
    side_columns,
    time_of,
)
from prefloop.data.row_files import Row, json_type
from prefloop.records import Choice

DRAFT = "draft"
GROUND_TRUTH = "ground truth, taken as the known answer"
NO_ANSWER = "response without this question"

_RESPONSES = ".responses"
_ARGILLA_OWN = ("_server_id", "status", "inserted_at", "updated_at", "score", "vectors", "suggestions")


def is_argilla(values: Mapping[str, Any]) -> bool:
    """Whether a row's columns are those of an Argilla export, nested or flat."""
    nested = isinstance(values.get("fields"), dict) and "responses" in values
    return nested or any(name.endswith(_RESPONSES) for name in values)


def is_label_studio(values: Mapping[str, Any]) -> bool:
    """Whether a row's columns are those of a task of Label Studio."""
    return isinstance(values.get("data"), dict) and isinstance(values.get("annotations"), list)


def _pair_row(
    row: Row, values: Mapping[str, Any], options: ImportOptions, details: Mapping[str, Any]
) -> tuple[Row, dict]:
    """The row of the pair alone, and what goes with it as details."""
    known = (*ID_COLUMNS, *PROMPT_COLUMNS, *side_columns(values))
    return Row(row.place, dict(values), row.typed), {**details, **others(values, known, options)}


# --- Argilla --------------------------------------------------------------------------------------------------------


def argilla_row(row: Row, columns: Mapping[str, str], options: ImportOptions) -> GivenRow:
    """A record of Argilla. Drafts are left out and counted; a discarded response is a skip."""
    record = row.values if isinstance(row.values.get("fields"), dict) else _nested(row.values)
    if not isinstance(record["responses"], dict | None):
        raise BadRow(MALFORMED, f"responses is {json_type(record['responses'])}; it must be an object")
    fields = renamed(record["fields"], columns)
    values = {**({"id": record["id"]} if record.get("id") is not None else {}), **fields}
    pair_row, details = _pair_row(row, values, options, json_value(record.get("metadata") or {}))
    pair = pair_of(pair_row, options, details=details)
    left, right = side_columns(values)
    # Answers may be called by the field that holds them.
    theirs = columns.get("left", left), columns.get("right", right)
    choices: dict[str, Choice] = {**options.choices, left.lower(): "left", right.lower(): "right"}
    choices |= {theirs[0].lower(): "left", theirs[1].lower(): "right"}
    labels: list[GivenLabel] = []
    dropped: Counter[str] = Counter()
    for response in _responses(record["responses"] or {}, options.question):
        if response.get("status") == "draft":
            dropped[DRAFT] += 1
            continue
        value = response.get("value")
        if value is None and response.get("status") != "discarded":
            dropped[NO_ANSWER] += 1
            continue
        choice = "skip" if response.get("status") == "discarded" else _argilla_choice(value, choices)
        user = response.get("user_id")
        labels.append(GivenLabel(options.annotator if user in (None, "", "None") else name_of(user, "user_id"), choice))
    return GivenRow(pair, labels, dropped)


def _nested(values: Mapping[str, Any]) -> dict[str, Any]:
    """A flat record as a nested one."""
    questions = [name.removesuffix(_RESPONSES) for name in values if name.endswith(_RESPONSES)]
    responses: dict[str, list[dict[str, Any]]] = {}
    for question in questions:
        given = values[f"{question}{_RESPONSES}"] or []
        users = values.get(f"{question}{_RESPONSES}.users") or [None] * len(given)
        states = values.get(f"{question}{_RESPONSES}.status") or [None] * len(given)
        if not len(given) == len(users) == len(states):
            raise BadRow(MALFORMED, f"{question} has {len(given)} responses of {len(users)} users")
        responses[question] = [
            {"value": value, "user_id": user, "status": state}
            for value, user, state in zip(given, users, states, strict=True)
        ]
    own = {name for name in values for question in questions
           if name.startswith((f"{question}{_RESPONSES}", f"{question}.suggestion"))}  # fmt: skip
    fields = {name: value for name, value in values.items() if name not in {*own, *_ARGILLA_OWN, "id"}}
    return {"id": values.get("id"), "fields": fields, "responses": responses}


def _responses(responses: Mapping[str, Any], question: str | None) -> list[dict[str, Any]]:
    if question is None and len(responses) > 1:
        raise BadRow(MALFORMED, f"there are several questions ({', '.join(responses)}); name one with question=...")
    name = question if question is not None else next(iter(responses), "")
    given = responses.get(name) or []
    if not isinstance(given, list) or not all(isinstance(one, dict) for one in given):
        raise BadRow(MALFORMED, f"the responses to {name!r} must be a list of objects with value and user_id")
    return given


def _argilla_choice(value: object, choices: Mapping[str, Choice]) -> Choice:
    """A label's value, or a ranking: names in order, or names with ranks, of which equal ones are a tie."""
    if not isinstance(value, list):
        return choice_of(value, "value", choices)
    ranks: dict[Choice, float] = {}
    for place, item in enumerate(value):
        named = item if isinstance(item, dict) else {"value": item, "rank": place}
        rank = number_of(named.get("rank"), "rank")
        side = choice_of(named.get("value"), "a ranked value", choices)
        if rank is None or side in ranks:
            raise BadRow(MALFORMED, f"the ranking {value!r} has no rank for one answer, or two for the same")
        ranks[side] = rank
    if ranks.keys() != {"left", "right"}:
        raise BadRow(UNKNOWN_CHOICE, f"the ranking {value!r} does not rank the two answers")
    if ranks["left"] == ranks["right"]:
        return "tie"
    return "left" if ranks["left"] < ranks["right"] else "right"


# --- Label Studio ---------------------------------------------------------------------------------------------------


def label_studio_row(row: Row, columns: Mapping[str, str], options: ImportOptions) -> GivenRow:
    """A task of Label Studio. A cancelled annotation is a skip; one marked as ground truth is the known answer."""
    task = row.values
    data = renamed(task["data"], columns)
    values = {**({"id": task["id"]} if task.get("id") is not None and "id" not in data else {}), **data}
    pair_row, details = _pair_row(row, values, options, {})
    pair = pair_of(pair_row, options, details=details)
    labels: list[GivenLabel] = []
    dropped: Counter[str] = Counter()
    for annotation in task["annotations"]:
        if not isinstance(annotation, dict):
            raise BadRow(MALFORMED, f"an annotation is {json_type(annotation)}; it must be an object")
        label = _label_studio_label(annotation, options)
        if annotation.get("ground_truth"):
            pair = replace(pair, gold_choice=label.choice)
            dropped[GROUND_TRUTH] += 1
        else:
            labels.append(label)
    return GivenRow(pair, labels, dropped)


def _label_studio_label(annotation: Mapping[str, Any], options: ImportOptions) -> GivenLabel:
    seconds = number_of(annotation.get("lead_time"), "lead_time") or 0.0
    submitted_at = time_of(annotation.get("created_at"), "created_at") or seconds
    return GivenLabel(
        _label_studio_annotator(annotation.get("completed_by"), options),
        "skip" if annotation.get("was_cancelled") else _label_studio_choice(annotation, options),
        rationale=_label_studio_text(annotation),
        opened_at=submitted_at - seconds,
        submitted_at=submitted_at,
    )


def _label_studio_annotator(value: object, options: ImportOptions) -> str:
    """The email where the export has it, else the number of the user."""
    if isinstance(value, dict):
        value = value.get("email") or value.get("id")
    return options.annotator if value is None else name_of(value, "completed_by")


def _results(annotation: Mapping[str, Any], kind: str) -> list[dict[str, Any]]:
    results = annotation.get("result") or []
    if not isinstance(results, list) or not all(isinstance(one, dict) for one in results):
        raise BadRow(MALFORMED, "result must be a list of objects")
    found = [one["value"] for one in results if one.get("type") == kind]
    if not all(isinstance(value, dict) for value in found):
        raise BadRow(MALFORMED, f"the value of a result of type {kind} must be an object")
    return found


def _label_studio_choice(annotation: Mapping[str, Any], options: ImportOptions) -> Choice:
    said = [value.get("selected") for value in _results(annotation, "pairwise")]
    said += [name for value in _results(annotation, "choices") for name in value.get("choices") or []]
    if len(said) != 1:
        raise BadRow(UNKNOWN_CHOICE, f"an annotation has {len(said)} choices (Pairwise or Choices); it must have one")
    return choice_of(said[0], "selected", options.choices)


def _label_studio_text(annotation: Mapping[str, Any]) -> str:
    texts: list[str] = []
    for value in _results(annotation, "textarea"):
        text = value.get("text")
        texts += [text] if isinstance(text, str) else [one for one in text or [] if isinstance(one, str)]
    return "\n".join(texts)


def renamed(values: Mapping[str, Any], columns: Mapping[str, str]) -> dict[str, Any]:
    """The values with the mapped columns under our names. Raises BadRow where a mapped column is missing."""
    for ours, theirs in columns.items():
        if theirs not in values:
            raise BadRow(
                MALFORMED, f"there is no column {theirs!r} (columns: {ours}={theirs}); found: {', '.join(values)}"
            )
    rest = {name: value for name, value in values.items() if name not in columns.values()}
    return rest | {ours: values[theirs] for ours, theirs in columns.items()}
