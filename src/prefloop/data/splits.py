"""Splits by prompt, never by row: answers to one prompt must not stand on both sides of a measurement."""

import hashlib
import json
import math
from collections.abc import Mapping, Sequence
from typing import TypeVar

from prefloop.data.record_forms import Record
from prefloop.errors import SettingsError
from prefloop.records import Demonstration, LabelledText, PreferencePair, Prompt, TextExample

RecordType = TypeVar("RecordType", bound=Record)


def split_by_prompt(
    records: Sequence[RecordType], *, shares: Mapping[str, float], seed: int
) -> dict[str, list[RecordType]]:
    """The records in named parts, in their order, all records of one prompt in the same part.

    The part follows from a hash of seed and prompt alone, so it changes neither with the order nor with other records;
    a part's size is close to its share, and small data can leave a part empty. Records without a prompt go by their
    text. Raises SettingsError unless the shares are positive and add up to 1.
    """
    total = math.fsum(shares.values())
    if not shares or min(shares.values()) <= 0 or abs(total - 1) > 1e-9:
        raise SettingsError(f"The shares {dict(shares)} add up to {total:g}; they must be positive and add up to 1.")
    parts: dict[str, list[RecordType]] = {name: [] for name in shares}
    part_of: dict[str, str] = {}
    for record in records:
        key = prompt_key(record)
        if key not in part_of:
            part_of[key] = _part(key, shares, seed)
        parts[part_of[key]].append(record)
    return parts


def _part(key: str, shares: Mapping[str, float], seed: int) -> str:
    digest = hashlib.sha256(f"{seed}\n{key}".encode()).digest()
    place = int.from_bytes(digest[:8], "big") / 2**64
    bound = 0.0
    for name, share in shares.items():
        bound += share
        if place < bound:
            return name
    return list(shares)[-1]  # The sum of the shares may round to a little below 1.


def prompt_key(record: Record) -> str:
    """What records of one prompt have in common: the prompt as JSON, or the text where there is no prompt."""
    prompt: Prompt
    if isinstance(record, TextExample):
        prompt = record.text
    elif isinstance(record, LabelledText):
        prompt = record.prompt or record.text
    elif isinstance(record, Demonstration | PreferencePair):
        prompt = record.prompt
    else:
        prompt = record
    return json.dumps(prompt if isinstance(prompt, str) else [[turn.role, turn.content] for turn in prompt])


def leakage(train: Sequence[Record], test: Sequence[Record]) -> int:
    """How many distinct prompts stand on both sides."""
    return len({prompt_key(record) for record in train} & {prompt_key(record) for record in test})
