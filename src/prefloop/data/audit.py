"""Token groups from records, with an account of every row: read = used + dropped, by reason."""

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any, Literal, TypeVar, get_args

import numpy as np

from prefloop.batches import TokenGroup
from prefloop.data.encoder_format import TextFormat
from prefloop.data.record_forms import Record
from prefloop.errors import DataError, SettingsError
from prefloop.records import Demonstration, LabelledText, PreferencePair, TextExample

TooLong = Literal["drop", "truncate", "error"]
RecordType = TypeVar("RecordType", bound=Record)

TOO_LONG = "longer than max_length"
EQUAL_AFTER_TRUNCATION = "equal after truncation"
EQUAL_IN_TOKENS = "equal in tokens"
NOTHING_SUPERVISED = "no supervised token left"

PERCENTILES = (50, 90, 99, 100)
EXAMPLE_CHARACTERS = 1000


@dataclass(frozen=True)
class Audit:
    """What became of the rows. Lengths are in tokens, by percentile (nearest rank; 100 is the longest).

    `supervised_share` is the share of all tokens that are learned from. `examples` are the first and the last group as
    text, special tokens written out, the supervised part between « and ».
    """

    rows_read: int
    used: int
    dropped: dict[str, int]
    num_truncated: int
    total_tokens: int
    supervised_share: float
    prompt_length_tokens: dict[int, int]
    response_length_tokens: dict[int, int]
    examples: tuple[str, ...]

    def __post_init__(self) -> None:
        assert self.rows_read == self.used + sum(self.dropped.values()), "a row vanished"

    def lines(self) -> list[str]:
        """The account in words, one fact per line."""
        lines = [f"{self.rows_read:,} rows read, {self.used:,} used, {sum(self.dropped.values()):,} dropped"]
        lines += [f"  dropped {count:,}: {reason}" for reason, count in self.dropped.items()]
        if self.num_truncated:
            lines.append(f"  truncated {self.num_truncated:,} of those used")
        lines.append(f"{self.total_tokens:,} tokens, {self.supervised_share:.1%} of them supervised")
        for name, lengths in (("prompt", self.prompt_length_tokens), ("response", self.response_length_tokens)):
            if lengths:
                figures = ", ".join(f"{'longest' if p == 100 else f'{p} %'} {n:,}" for p, n in lengths.items())
                lines.append(f"{name} length in tokens: {figures}")
        for number, example in enumerate(self.examples, start=1):
            lines += [f"example {number}, supervised between « and »:", example]
        return lines

    def to_json(self) -> dict[str, Any]:
        """The account as JSON values."""
        values = asdict(self)
        for name in ("prompt_length_tokens", "response_length_tokens"):
            values[name] = {str(percentile): length for percentile, length in values[name].items()}
        values["examples"] = list(self.examples)
        return values


def prepare_groups(
    records: Sequence[RecordType],
    text_format: TextFormat,
    *,
    max_length: int,
    too_long: TooLong = "drop",
    places: Sequence[str] | None = None,
    dropped_before: Mapping[str, int] | None = None,
) -> tuple[list[TokenGroup], list[RecordType], Audit]:
    """Token groups whose every prompt with a response has at most `max_length` tokens, their records, and the account.

    `too_long` says what happens to longer rows. "drop" leaves them out. "truncate" cuts the prompt from the left, what
    opens it kept; where a response alone is too long its end is cut, and with it the token that ends it. "error"
    raises DataError. A pair whose answers are equal once cut, and a group without a supervised token, are dropped.

    `places` names the rows in errors (file:line). `dropped_before` counts what was dropped while reading, so that the
    account starts at the file: its rows_read is the records plus these.

    Raises DataError where no row is left, and for a row whose text cannot be laid out; SettingsError for an unknown
    `too_long` or a `max_length` below 2.
    """
    if too_long not in get_args(TooLong):
        raise SettingsError(f"too_long is {too_long!r}; it must be one of {', '.join(get_args(TooLong))}.")
    if max_length < 2:
        raise SettingsError(f"max_length is {max_length}; a prompt token and a response token need at least 2.")
    dropped = Counter(dropped_before or {})
    rows_read = len(records) + dropped.total()
    groups: list[TokenGroup] = []
    kept: list[RecordType] = []
    num_truncated = 0
    for number, record in enumerate(records):
        place = places[number] if places is not None else f"record {number + 1}"
        group = _laid_out(record, text_format, place)
        is_long = group.longest_leaf > max_length
        if is_long and too_long == "error":
            raise DataError(
                f"{place} has {group.longest_leaf} tokens ({len(group.prompt)} of them prompt); at most {max_length} "
                "fit. Raise max_length, or set too_long to drop or truncate."
            )
        if is_long and too_long == "truncate":
            group = text_format.truncated(group, max_length)
        reason = TOO_LONG if is_long and too_long == "drop" else _useless(group, truncated=is_long)
        if reason:
            dropped[reason] += 1
            continue
        num_truncated += is_long
        groups.append(group)
        kept.append(record)
    if not groups:
        reasons = ", ".join(f"{count} {reason}" for reason, count in dropped.items()) or "no rows were given"
        raise DataError(f"No row is left to train on ({reasons}); raise max_length or give other data.")
    return groups, kept, _account(groups, text_format, rows_read, dict(dropped), num_truncated)


def _laid_out(record: Record, text_format: TextFormat, place: str) -> TokenGroup:
    try:
        if isinstance(record, TextExample):
            return text_format.text_group(record)
        if isinstance(record, Demonstration):
            return text_format.demonstration_group(record)
        if isinstance(record, PreferencePair):
            return text_format.pair_group(record)
        if isinstance(record, LabelledText):
            return text_format.labelled_group(record)
        return text_format.prompt_group(record)
    except DataError as error:
        raise DataError(f"{place}: {error}") from error


def _useless(group: TokenGroup, *, truncated: bool) -> str | None:
    """Why nothing can be learned from the group; a prompt alone is there to be answered, not learned from."""
    if not group.responses:
        return None
    if len(group.responses) > 1 and len(set(group.responses)) == 1:
        return EQUAL_AFTER_TRUNCATION if truncated else EQUAL_IN_TOKENS
    return None if _num_supervised(group) else NOTHING_SUPERVISED


def _num_supervised(group: TokenGroup) -> int:
    if group.supervised is None:
        return sum(len(response) for response in group.responses)
    return sum(sum(mask) for mask in group.supervised)


def _account(
    groups: Sequence[TokenGroup], text_format: TextFormat, rows_read: int, dropped: dict[str, int], num_truncated: int
) -> Audit:
    total = sum(group.num_tokens for group in groups)
    shown = [groups[0], groups[-1]] if len(groups) > 1 else groups
    return Audit(
        rows_read=rows_read,
        used=len(groups),
        dropped=dropped,
        num_truncated=num_truncated,
        total_tokens=total,
        supervised_share=sum(_num_supervised(group) for group in groups) / total,
        prompt_length_tokens=_percentiles([len(group.prompt) for group in groups]),
        response_length_tokens=_percentiles([len(response) for group in groups for response in group.responses]),
        examples=tuple(_example(group, text_format) for group in shown),
    )


def _percentiles(lengths: Sequence[int]) -> dict[int, int]:
    if not lengths:
        return {}
    values = np.percentile(np.asarray(lengths), PERCENTILES, method="inverted_cdf")
    return {percentile: int(value) for percentile, value in zip(PERCENTILES, values, strict=True)}


def _example(group: TokenGroup, text_format: TextFormat) -> str:
    """The prompt, then each response with its supervised runs marked."""
    parts = [_shortened(text_format.spelled(group.prompt))]
    for number, response in enumerate(group.responses):
        mask = group.supervised[number] if group.supervised is not None else (True,) * len(response)
        text, begin = "", 0
        for end in range(1, len(response) + 1):
            if end == len(response) or mask[end] != mask[begin]:
                run = _shortened(text_format.spelled(response[begin:end]))
                text += f"«{run}»" if mask[begin] else run
                begin = end
        parts.append(text)
    return "\n--- or ---\n".join([parts[0] + "".join(parts[1:2]), *parts[2:]])


def _shortened(text: str) -> str:
    """Long texts lose their middle, so that the joints stay visible."""
    if len(text) <= EXAMPLE_CHARACTERS:
        return text
    half = EXAMPLE_CHARACTERS // 2
    return f"{text[:half]} […{len(text) - 2 * half:,} characters…] {text[-half:]}"
