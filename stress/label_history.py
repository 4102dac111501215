"""What clients said they did, compared with what a label store remembers.

The idea is that of Jepsen's checkers (Kingsbury, "Jepsen", jepsen.io): every client writes down each operation before
it is sent and again when the answer is there, in a log of its own that no crash of the server touches. Afterwards an
operation that was acknowledged must be in the store exactly once and word for word; one that was not may be there as a
whole or not at all; and nothing may be there that nobody sent. The store's record is then played again, event by
event, and at no moment may a rule of the queue be broken.
"""

from collections import Counter, defaultdict
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from typing import Literal

from prefloop.collection.label_records import LabelEvent
from prefloop.records import Choice


@dataclass(frozen=True, slots=True)
class Said:
    """The content of one operation. `choice` is by the pair's own sides; an undo's `pair_id` is "" until it is told."""

    event: Literal["label", "undo"]
    submission_id: str
    annotator: str
    pair_id: str = ""
    choice: Choice | None = None
    displayed_choice: Choice | None = None
    strength: int | None = None
    rationale: str = ""
    opened_at: float = 0.0
    submitted_at: float = 0.0


@dataclass(frozen=True, slots=True)
class LogEntry:
    """A line of a client's log, written before an operation is sent and after it was answered.

    `moment_seconds` is the monotonic clock. An acknowledgement carries the receipt's numbers.
    """

    moment_seconds: float
    outcome: Literal["sent", "acknowledged", "refused"]
    said: Said
    event_id: int | None = None
    revision: int | None = None


@dataclass
class Findings:
    """What is wrong, a sentence each, and how much was looked at."""

    num_acknowledged: int = 0
    num_unacknowledged_kept: int = 0
    num_unacknowledged_absent: int = 0
    lost: list[str] = field(default_factory=list)
    """Acknowledged, and not in the store or not as it was sent."""
    doubled: list[str] = field(default_factory=list)
    """There twice, or by nobody; or one person with two labels for a pair."""
    over_k: list[str] = field(default_factory=list)
    """Moments at which a pair had more labels than the project asks for."""
    other: list[str] = field(default_factory=list)
    """Refused and kept all the same, revisions that do not follow, a current label that the record does not give."""

    def all(self) -> list[str]:
        """Every sentence, each with the kind of fault before it."""
        kinds = {"lost": self.lost, "doubled": self.doubled, "over k": self.over_k, "other": self.other}
        return [f"{kind}: {sentence}" for kind, sentences in kinds.items() for sentence in sentences]


def check_history(
    log: Iterable[LogEntry],
    events: Sequence[LabelEvent],
    current_labels: Sequence[LabelEvent],
    *,
    annotators_per_pair: int,
) -> Findings:
    """Compares the clients' logs (in any order) with the store's record (oldest first) and with its current labels."""
    findings = Findings()
    _compare(list(log), events, findings)
    standing = _play_again(events, findings, annotators_per_pair=annotators_per_pair)
    _compare_current(standing, current_labels, findings)
    return findings


def _compare(log: Sequence[LogEntry], events: Sequence[LabelEvent], findings: Findings) -> None:
    """Each operation against the events of its submission id."""
    said = {entry.said.submission_id: entry.said for entry in log if entry.outcome == "sent"}
    acknowledged = {entry.said.submission_id: entry for entry in log if entry.outcome == "acknowledged"}
    refused = {entry.said.submission_id for entry in log if entry.outcome == "refused"}
    kept: dict[str, list[LabelEvent]] = defaultdict(list)
    for event in events:
        kept[event.submission_id].append(event)
        if event.submission_id not in said:
            findings.doubled.append(f"nobody sent {_named(event)}")
    findings.num_acknowledged = len(acknowledged)
    for submission_id, what in said.items():
        found = kept.get(submission_id, [])
        entry = acknowledged.get(submission_id)
        if len(found) > 1:
            findings.doubled.append(f"{submission_id} is there {len(found)} times")
        elif entry is not None:
            _compare_acknowledged(entry, found, findings)
        elif submission_id in refused:
            if found:
                findings.other.append(f"{submission_id} was refused and kept all the same")
        elif found:
            findings.num_unacknowledged_kept += 1
            if _differs(what, found[0]):
                findings.other.append(f"unacknowledged {submission_id} is there in part: {_differs(what, found[0])}")
        else:
            findings.num_unacknowledged_absent += 1


def _compare_acknowledged(entry: LogEntry, found: Sequence[LabelEvent], findings: Findings) -> None:
    submission_id = entry.said.submission_id
    if not found:
        findings.lost.append(f"{submission_id} was acknowledged and is not there")
        return
    differences = _differs(entry.said, found[0])
    if (entry.event_id, entry.revision) != (found[0].event_id, found[0].revision):
        differences.append("receipt")
    if differences:
        findings.lost.append(f"{submission_id} is there with another {', '.join(differences)}")


def _differs(said: Said, event: LabelEvent) -> list[str]:
    """Names of what is not as it was sent. An undo has no words of its own, and its times are the server's."""
    names = ["event", "annotator", "choice", "displayed_choice"]
    if said.event == "label":
        names += ["strength", "rationale", "opened_at", "submitted_at"]
    if said.pair_id:
        names.append("pair_id")
    return [name for name in names if getattr(said, name) != getattr(event, name)]


@dataclass
class _Place:
    """One person and one pair (a repeat apart), as far as the record was played."""

    revision: int = 0
    standing: LabelEvent | None = None


def _play_again(events: Sequence[LabelEvent], findings: Findings, *, annotators_per_pair: int) -> list[LabelEvent]:
    """The labels that stand at the end; what breaks a rule on the way is noted."""
    places: dict[tuple[str, str, bool], _Place] = defaultdict(_Place)
    standing_of: dict[str, dict[int, LabelEvent]] = defaultdict(dict)
    num_labels: Counter[str] = Counter()
    last_id = 0
    for event in events:
        if event.event_id <= last_id:
            findings.doubled.append(f"{_named(event)} does not come after event {last_id}")
        last_id = event.event_id
        place = places[event.annotator, event.pair_id, event.kind == "repeat"]
        if event.revision <= place.revision:
            findings.doubled.append(f"{_named(event)} has revision {event.revision} after {place.revision}")
        elif event.revision != place.revision + 1:
            findings.lost.append(f"before {_named(event)} revisions from {place.revision + 1} on are missing")
        own = standing_of[event.annotator]
        if event.event == "undo":
            latest = max(own, default=0)
            if place.standing is None or place.standing.event_id != latest:
                findings.other.append(f"{_named(event)} does not take back the person's latest label")
        num_labels[event.pair_id] += _counts(event) - _counts(place.standing)
        if num_labels[event.pair_id] > annotators_per_pair:
            findings.over_k.append(f"{event.pair_id} has {num_labels[event.pair_id]} labels after {_named(event)}")
        if place.standing is not None:
            own.pop(place.standing.event_id, None)
        place.revision = event.revision
        place.standing = event if event.event == "label" else None
        if place.standing is not None:
            own[event.event_id] = event
    return [place.standing for place in places.values() if place.standing is not None]


def _counts(event: LabelEvent | None) -> int:
    """Whether an event is one of the pair's k labels."""
    return int(event is not None and event.kind == "regular" and event.choice not in (None, "skip"))


def _compare_current(standing: Sequence[LabelEvent], current_labels: Sequence[LabelEvent], findings: Findings) -> None:
    """The store's view of what stands, against the record played again."""
    expected = {event.event_id: event for event in standing}
    shown = {event.event_id: event for event in current_labels}
    people = Counter((event.annotator, event.pair_id, event.kind == "repeat") for event in current_labels)
    for (annotator, pair_id, _), num in people.items():
        if num > 1:
            findings.doubled.append(f"{annotator} has {num} labels that stand for {pair_id}")
    for event_id in sorted(expected.keys() | shown.keys()):
        if expected.get(event_id) != shown.get(event_id):
            what = "is not shown" if event_id not in shown else "is shown" if event_id not in expected else "differs"
            findings.other.append(f"current labels: event {event_id} {what}, against the record")


def _named(event: LabelEvent) -> str:
    return f"event {event.event_id} ({event.event} {event.submission_id} of {event.annotator} for {event.pair_id})"
