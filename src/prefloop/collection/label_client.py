"""A label server seen from a program: the HTTP that the page speaks, with a personal link's token instead of a cookie.

Simulated annotators work through it, so that a whole round can run unattended over the very server people use.
"""

import random
import time
import uuid
from collections.abc import Callable, Mapping
from typing import Any, Self

import httpx

from prefloop.collection.annotators import SimulatedAnnotator
from prefloop.errors import DataError, LabelRefusedError, RunError
from prefloop.records import Choice, Comparison, Completion, Message, Prompt

FIRST_WAIT_SECONDS = 0.1
LONGEST_WAIT_SECONDS = 2.0


class LabelClient:
    """One annotator at a label server.

    A request that got no answer is sent again, with the same submission id, until `give_up_seconds` have passed: a
    server that restarts loses nothing and takes nothing twice. Raises RunError after that, or for an answer that is no
    label server's; LabelRefusedError and DataError for what the server refuses.
    """

    def __init__(self, url: str, token: str, *, give_up_seconds: float = 60.0) -> None:
        self.url = url.rstrip("/")
        self.give_up_seconds = give_up_seconds
        self._http = httpx.Client(base_url=self.url, headers={"Authorization": f"Bearer {token}"}, timeout=30.0)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *reason: object) -> None:
        self._http.close()

    def next_tasks(self, num: int) -> dict[str, Any]:
        """Up to `num` tasks that are this annotator's now, and the progress."""
        return self._post("/api/next", {"num": num})

    def submit(
        self, task_id: str, choice: Choice, *, opened_at: float, rationale: str = "", num_next: int = 0
    ) -> dict[str, Any]:
        """What the server says of the label (`receipt`), the next tasks if asked for, and the progress."""
        body = {
            "submission_id": str(uuid.uuid4()),
            "task_id": task_id,
            "choice": choice,
            "rationale": rationale,
            "opened_at": opened_at,
            "submitted_at": time.time(),
            "client_version": "prefloop client",
            "num_next": num_next,
        }
        return self._post("/api/labels", body)

    def _post(self, path: str, body: Mapping[str, Any]) -> dict[str, Any]:
        deadline = time.monotonic() + self.give_up_seconds
        wait = FIRST_WAIT_SECONDS
        while True:
            try:
                answer = self._http.post(path, json=body)
            except httpx.TransportError as problem:
                if time.monotonic() + wait > deadline:
                    raise RunError(f"The label server at {self.url} does not answer: {problem}.") from problem
            else:
                if answer.status_code < 500:
                    return self._content(answer)
                if time.monotonic() + wait > deadline:
                    raise RunError(f"The label server at {self.url} failed with status {answer.status_code}.")
            time.sleep(wait)
            wait = min(2 * wait, LONGEST_WAIT_SECONDS)

    def _content(self, answer: httpx.Response) -> dict[str, Any]:
        try:
            content = answer.json()
        except ValueError as problem:
            raise RunError(f"What answers at {self.url} is no label server.") from problem
        if answer.status_code == 200:
            return content
        error = content.get("error", {})
        message = str(error.get("message", f"the label server refused with status {answer.status_code}"))
        if answer.status_code == 409:
            raise LabelRefusedError(message, error.get("reason", "unknown_task"))
        raise DataError(message)


def label_everything(
    client: LabelClient, annotator: SimulatedAnnotator, *, seed: int, labelled: Callable[[], None] = lambda: None
) -> int:
    """Lets a simulated annotator label until the server has nothing left for it; returns how many labels it gave.

    Each choice is drawn from the seed, the annotator's name and the texts as displayed, which is all that it sees.
    `labelled` is called after each label.
    """
    num = 0
    tasks = client.next_tasks(1)["tasks"]
    while tasks:
        opened_at = time.time()
        task = tasks[0]
        comparison = comparison_of_task(task)
        stream = repr(("choice", seed, annotator.name, comparison.prompt, comparison.left.text, comparison.right.text))
        choice = annotator.choose(comparison, random.Random(stream)).choice
        try:
            tasks = client.submit(task["task_id"], choice, opened_at=opened_at, num_next=1)["tasks"]
        except LabelRefusedError as refusal:
            if refusal.reason != "pair_complete":
                raise
            tasks = client.next_tasks(1)["tasks"]
            continue
        num += 1
        labelled()
    return num


def comparison_of_task(task: Mapping[str, Any]) -> Comparison:
    """What a task shows, as a comparison by side as displayed; its pair is unknown here, so it is named by the task."""
    messages = tuple(Message(one["role"], one["content"]) for one in task["prompt"])
    is_text = len(messages) == 1 and messages[0].role == "user"
    prompt: Prompt = messages[0].content if is_text else messages
    left, right = (Completion(task[side]["text"], ended=task[side]["ended"]) for side in ("left", "right"))
    return Comparison(task["task_id"], prompt, left, right)
