"""People who label, as threads: each holds a personal link, one connection, and a log of all that was said.

A client behaves as the label page does. A submission keeps its id until the server has acknowledged it, however often
the connection breaks; a task is answered before the next is asked for. Besides labels it undoes, edits, skips, sends
the same submission twice, and sends other words under a used id, which the server must refuse.
"""

import http.client
import json
import random
import threading
import time
from dataclasses import dataclass, field, replace
from typing import Any

from prefloop.records import Choice
from stress.label_history import LogEntry, Said

REQUEST_SECONDS = 20.0
RETRY_SECONDS = 0.1
CLIENT_VERSION = "stress 1"
SIDES: tuple[Choice, ...] = ("left", "right")
CHOICES: tuple[Choice, ...] = ("left", "left", "left", "right", "right", "right", "tie", "both_bad")
RATIONALES = ("", "", "", "shorter", "говорит прямо 🎯", 'it\'s "better"; DROP TABLE events; --', "x" * 2000)

SHARE_UNDONE, SHARE_EDITED, SHARE_REPLAYED, SHARE_REUSED, SHARE_SKIPPED = 0.02, 0.02, 0.02, 0.01, 0.03
SHARE_GIVEN_UP = 0.02
"""How often a client whose connection broke never sends the label again: a browser that was closed for good."""
SHARE_HELD = 0.002
"""How often a client keeps a task until its lease has run out."""


@dataclass
class Pace:
    """What all clients of a run share: how fast to label, and when to stop."""

    stopping: threading.Event = field(default_factory=threading.Event)
    interval_seconds: float = 0.0
    """Between two labels of a client; at 0 each answer is followed by the next label at once."""
    hold_seconds: float = 0.0
    """How long a held task is held; at 0 none is."""


@dataclass(frozen=True, slots=True)
class Timing:
    """One acknowledged label: when it was due, sent, and answered (monotonic seconds). Retries lie in between."""

    due: float
    sent: float
    answered: float


@dataclass
class _TaskState:
    """What a client knows of a task it was given. `unsure`: a label was given up, and may have arrived or not."""

    task: dict[str, Any]
    standing: Said | None = None
    unsure: bool = False


@dataclass(frozen=True, slots=True)
class _Answered:
    """A submission that was acknowledged, for sending it again."""

    said: Said
    body: dict[str, Any]
    receipt: dict[str, Any]


class LabelClient(threading.Thread):
    """One annotator at work until `pace` says stop. `problems` are answers that a right server never gives."""

    def __init__(self, name: str, token: str, *, port: int, pace: Pace, seed: int) -> None:
        super().__init__(name=name, daemon=True)
        self.log: list[LogEntry] = []
        self.timings: list[Timing] = []
        self.problems: list[str] = []
        self.num_retries = 0
        self._token = token
        self._port = port
        self._pace = pace
        self._draw = random.Random(f"{seed} {name}")
        self._connection: http.client.HTTPConnection | None = None
        self._tasks: dict[str, _TaskState] = {}
        self._ids_of_pair: dict[str, set[str]] = {}
        self._given: dict[str, Any] | None = None
        self._last: _Answered | None = None
        self._num_said = 0
        self._due = 0.0

    def run(self) -> None:
        try:
            while not self._pace.stopping.is_set():
                self._one_round()
        except Exception as problem:
            self.problems.append(f"the client itself failed: {type(problem).__name__}: {problem}")
        finally:
            self._hang_up()

    def _one_round(self) -> None:
        if self._given is None:
            answer = self._request("/api/next", {"num": 1})
            if answer is not None and self._expect(answer, 200):
                self._take(answer[1]["tasks"])
            if self._given is None:
                self._pace.stopping.wait(0.1)
            return
        self._wait_until_due()
        if self._pace.hold_seconds and self._draw.random() < SHARE_HELD:
            self._pace.stopping.wait(self._pace.hold_seconds)
        self._label(self._given, skip=self._draw.random() < SHARE_SKIPPED)
        what = self._draw.random()
        for share, action in (
            (SHARE_UNDONE, self._undo),
            (SHARE_EDITED, self._edit),
            (SHARE_REPLAYED, self._replay),
            (SHARE_REUSED, self._reuse_id),
        ):
            if what < share:
                action()
                break
            what -= share

    def _wait_until_due(self) -> None:
        interval = self._pace.interval_seconds
        now = time.monotonic()
        if interval == 0.0:
            self._due = now
        elif self._due < now - 20 * interval or self._due == 0.0:
            # Just switched to a pace: clients begin at moments of their own.
            self._due = now + interval * self._draw.random()
        else:
            self._due += interval
        if self._due > now:
            self._pace.stopping.wait(self._due - now)

    def _take(self, tasks: list[dict[str, Any]]) -> None:
        """Notes the first task as the one at hand; a task or pair that must not come again is a problem."""
        self._given = tasks[0] if tasks else None
        for task in tasks:
            task_id, pair_id = task["task_id"], _pair_id(task)
            state = self._tasks.setdefault(task_id, _TaskState(task))
            if state.standing is not None and not state.unsure:
                self.problems.append(f"task {task_id} ({pair_id}) was given again though it is labelled")
            # Given out as unanswered: a label that was given up is not there.
            state.standing, state.unsure = None, False
            ids = self._ids_of_pair.setdefault(pair_id, set())
            ids.add(task_id)
            # A second task for a pair is a repeat; gold pairs have none.
            if len(ids) > (1 if pair_id.startswith("gold") else 2):
                self.problems.append(f"{pair_id} was given {len(ids)} times, as tasks of their own")

    def _label(self, task: dict[str, Any], *, skip: bool = False, is_edit: bool = False) -> None:
        displayed: Choice = "skip" if skip else self._draw.choice(CHOICES)
        said = self._said(task, displayed)
        body = {
            "submission_id": said.submission_id,
            "task_id": task["task_id"],
            "choice": displayed,
            "strength": said.strength,
            "rationale": said.rationale,
            "opened_at": said.opened_at,
            "submitted_at": said.submitted_at,
            "client_version": CLIENT_VERSION,
            "num_next": 1,
        }
        state = self._tasks[task["task_id"]]
        due, sent = self._due, time.monotonic()
        tries = self.num_retries
        answer = self._request("/api/labels", body, said=said, may_give_up=not is_edit)
        if not is_edit:
            self._given = None
        if answer is None:
            state.unsure = True
            return
        if answer[0] == 409 and answer[1]["error"]["reason"] == "pair_complete":
            self._note("refused", said)
            return
        if not self._expect(answer, 200):
            return
        receipt = answer[1]["receipt"]
        self._note("acknowledged", said, receipt)
        if not is_edit:
            self.timings.append(Timing(due, sent, time.monotonic()))
        if receipt["replayed"] and self.num_retries == tries:
            self.problems.append(f"{said.submission_id} was sent once and answered as a replay")
        state.standing, state.unsure = said, False
        self._last = _Answered(said, body, receipt)
        self._take(answer[1]["tasks"])

    def _said(self, task: dict[str, Any], displayed: Choice) -> Said:
        now = time.time()
        return Said(
            event="label",
            submission_id=self._new_id(),
            annotator=self.name,
            pair_id=_pair_id(task),
            choice=_own_side(task, displayed),
            displayed_choice=displayed,
            strength=self._draw.choice((None, 1, 2, 3, 4)) if displayed in SIDES else None,
            rationale=self._draw.choice(RATIONALES),
            opened_at=now - self._draw.random(),
            submitted_at=now,
        )

    def _new_id(self) -> str:
        self._num_said += 1
        return f"{self.name} {self._num_said} {self._draw.getrandbits(64):016x}"

    def _undo(self) -> None:
        if self._last is None or self._tasks[self._last.body["task_id"]].standing is None:
            return
        said = Said("undo", self._new_id(), self.name)
        answer = self._request("/api/undo", {"submission_id": said.submission_id}, said=said)
        if answer is None or not self._expect(answer, 200):
            return
        task, receipt = answer[1]["task"], answer[1]["receipt"]
        self._note("acknowledged", replace(said, pair_id=_pair_id(task)), receipt)
        state = self._tasks.setdefault(task["task_id"], _TaskState(task))
        before = state.standing
        previous = answer[1]["previous"]
        if before is not None and not state.unsure and previous["choice"] != before.displayed_choice:
            self.problems.append(f"undo {said.submission_id} took back {previous['choice']}, not what was said")
        state.standing, state.unsure = None, False
        self._given = task
        self._last = None

    def _edit(self) -> None:
        """Another answer to a task labelled before. The one at hand stays at hand."""
        labelled = [
            state for state in list(self._tasks.values())[-20:] if state.standing is not None and not state.unsure
        ]
        if labelled:
            at_hand = self._given
            self._label(self._draw.choice(labelled).task, skip=self._draw.random() < 0.3, is_edit=True)
            if self._given is None:
                self._given = at_hand

    def _replay(self) -> None:
        """The same submission again: the same receipt, now marked as replayed."""
        if self._last is None:
            return
        answer = self._request("/api/labels", self._last.body)
        if answer is not None and self._expect(answer, 200):
            if answer[1]["receipt"] != self._last.receipt | {"replayed": True}:
                self.problems.append(f"the replay of {self._last.said.submission_id} has another receipt")
            self._take(answer[1]["tasks"])

    def _reuse_id(self) -> None:
        """Other words under a used id: refused, whatever else is the matter."""
        if self._last is None:
            return
        answer = self._request("/api/labels", self._last.body | {"rationale": f"not {self._draw.random()}"})
        if answer is not None and self._expect(answer, 409) and answer[1]["error"]["reason"] != "id_reused":
            self.problems.append(f"a used id with other words was refused as {answer[1]['error']['reason']}")

    def _request(
        self, path: str, body: dict[str, Any], *, said: Said | None = None, may_give_up: bool = False
    ) -> tuple[int, dict[str, Any]] | None:
        """Status and content; None when the run stops, or the client gives up, before there is an answer."""
        content = json.dumps(body).encode()
        while not self._pace.stopping.is_set():
            if said is not None:
                self._note("sent", said)
            try:
                status, answer = self._send(path, content)
            except (OSError, http.client.HTTPException, json.JSONDecodeError):
                self._hang_up()
                status, answer = 0, {}
                if may_give_up and self._draw.random() < SHARE_GIVEN_UP:
                    return None
            if status not in (0, 503):
                return status, answer
            self.num_retries += 1
            self._pace.stopping.wait(RETRY_SECONDS * (0.5 + self._draw.random()))
        return None

    def _send(self, path: str, content: bytes) -> tuple[int, dict[str, Any]]:
        if self._connection is None:
            self._connection = http.client.HTTPConnection("127.0.0.1", self._port, timeout=REQUEST_SECONDS)
        headers = {"Authorization": f"Bearer {self._token}", "Content-Type": "application/json"}
        self._connection.request("POST", path, content, headers)
        response = self._connection.getresponse()
        return response.status, json.loads(response.read())

    def _hang_up(self) -> None:
        if self._connection is not None:
            self._connection.close()
            self._connection = None

    def _expect(self, answer: tuple[int, dict[str, Any]], status: int) -> bool:
        if answer[0] != status:
            self.problems.append(f"status {answer[0]} instead of {status}: {answer[1].get('error')}")
            self._pace.stopping.wait(0.1)
        return answer[0] == status

    def _note(self, outcome: Any, said: Said, receipt: dict[str, Any] | None = None) -> None:
        receipt = receipt or {}
        self.log.append(LogEntry(time.monotonic(), outcome, said, receipt.get("event_id"), receipt.get("revision")))


def _pair_id(task: dict[str, Any]) -> str:
    """The pairs of a run have prompts that name them, as the server hides their ids."""
    return task["prompt"][0]["content"].removeprefix("prompt of ")


def _own_side(task: dict[str, Any], displayed: Choice) -> Choice:
    """The choice by the pair's own sides, from the text that was shown: the answers of a run say which they are."""
    if displayed not in SIDES:
        return displayed
    return "left" if task[displayed]["text"].startswith("left answer") else "right"
