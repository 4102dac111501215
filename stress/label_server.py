"""Fifty people label while the server is killed, again and again: is anything lost, doubled, or one too many?

`make stress` runs it on SQLite and on PostgreSQL, prints a table for each, and exits with 1 when a rule was broken.
A run has three phases. "Open throttle": each client sends its next label as soon as the last is answered. "Steady":
200 labels a second fall due, spread over the clients; the latency of a label counts from the moment it was due until
its acknowledgement is there. "Kills": open throttle again, and the server gets SIGKILL at random moments while requests
are on their way; on PostgreSQL some rounds kill the database server (with all its processes) instead. Clients retry
under the same submission id until they are answered. The last kill is also the end for the clients, so that requests
remain whose fate nobody knows.

SIGKILL shows that a commit reached the operating system; what a power cut leaves is a matter of the disk's promises.
"""

import argparse
import json
import random
import shutil
import sqlite3
import statistics
import sys
import tempfile
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from itertools import takewhile
from pathlib import Path

from tests.databases import postgresql_binaries, running_postgresql

from prefloop.collection.label_records import ProjectSettings, StoredPair
from prefloop.collection.store import LabelStore, open_store
from prefloop.data.label_exports import export_preferences
from prefloop.data.label_rows import label_event_from_row
from prefloop.records import Comparison, Completion
from stress.label_clients import LabelClient, Pace
from stress.label_history import Findings, check_history
from stress.served_process import ServedProcess

RECOVERY_SECONDS = 30.0
SHARE_KILLED_WHILE_STARTING, LONGEST_START_SECONDS = 0.1, 1.0
"""How often the server is killed once more while it comes back: the recovery of a store has to bear that too."""
MAX_SHOWN = 20


@dataclass(frozen=True)
class Plan:
    """How large a run is."""

    num_clients: int = 50
    num_kills: int = 50
    num_database_kills: int = 5
    """Rounds in which PostgreSQL itself is killed, besides `num_kills`."""
    num_pairs: int = 8_000
    num_gold_pairs: int = 60
    annotators_per_pair: int = 3
    lease_seconds: float = 3.0
    open_throttle_seconds: float = 8.0
    steady_seconds: float = 11.0
    steady_labels_per_second: float = 200.0
    longest_round_seconds: float = 0.9
    """A kill comes at a random moment up to this long after labels are taken again."""
    seed: int = 0


@dataclass
class Measured:
    """What a run saw. Latencies are those of acknowledged labels, in seconds."""

    database: str
    open_labels_per_second: float = 0.0
    open_p50_seconds: float = 0.0
    open_p99_seconds: float = 0.0
    steady_labels_per_second: float = 0.0
    steady_p50_seconds: float = 0.0
    steady_p99_seconds: float = 0.0
    server_cpu_seconds_per_label: float = 0.0
    num_kills: int = 0
    num_kills_while_starting: int = 0
    num_database_kills: int = 0
    recovery_seconds: list[float] = field(default_factory=list)
    num_labels: int = 0
    num_events: int = 0
    num_retries: int = 0
    findings: Findings = field(default_factory=Findings)
    run_seconds: float = 0.0

    @property
    def violations(self) -> list[str]:
        return self.findings.all()


def stress_label_server(
    location: str,
    folder: Path,
    *,
    plan: Plan,
    kill_database: Callable[[], None] | None = None,
    module: str = "stress.served_process",
) -> Measured:
    """A whole run against a new project at `location`; what the server says and the export go to `folder`.

    `kill_database` kills the database server and brings it back. `module` is the server under test.
    """
    began = time.monotonic()
    measured = Measured("PostgreSQL" if "://" in location else "SQLite")
    links = _make_project(location, plan)
    served = ServedProcess(location, folder / "server.log", module=module)
    pace = Pace()
    clients = [LabelClient(name, token, port=served.port, pace=pace, seed=plan.seed) for name, token in links.items()]
    try:
        served.start()
        served.wait_until_up()
        for client in clients:
            client.start()
        _measure(clients, pace, served, plan, measured)
        _kill_again_and_again(clients, pace, served, plan, measured, kill_database)
    finally:
        pace.stopping.set()
        served.close()
        for client in clients:
            if client.ident is not None:
                client.join()
    _judge(location, folder, clients, served, plan, measured)
    measured.run_seconds = time.monotonic() - began
    return measured


def _make_project(location: str, plan: Plan) -> dict[str, str]:
    """A project whose texts name their pair and side; returns each person's name and link token."""
    settings = ProjectSettings(
        name="stress",
        annotators_per_pair=plan.annotators_per_pair,
        lease_seconds=plan.lease_seconds,
        gold_share=0.05,
        repeat_share=0.05,
        seed=plan.seed,
    )
    names = [f"pair-{number}" for number in range(plan.num_pairs)]
    golds = [f"gold-{number}" for number in range(plan.num_gold_pairs)]
    with open_store(location, settings=settings) as store:
        store.add_pairs([_pair(name) for name in names] + [_pair(name, gold=True) for name in golds])
        people = [f"annotator {number:02d}" for number in range(plan.num_clients)]
        return {name: store.add_account(name) for name in people}


def _pair(name: str, *, gold: bool = False) -> StoredPair:
    left, right = Completion(f"left answer of {name}"), Completion(f"right answer of {name}")
    return StoredPair(Comparison(name, f"prompt of {name}", left, right), "left" if gold else None)


def _measure(clients: list[LabelClient], pace: Pace, served: ServedProcess, plan: Plan, measured: Measured) -> None:
    """The two phases without kills. Their first second is left out: caches fill, clients fall into step."""
    window = _window(clients, plan.open_throttle_seconds)
    measured.open_labels_per_second, measured.open_p50_seconds, measured.open_p99_seconds = window
    pace.interval_seconds = plan.num_clients / plan.steady_labels_per_second
    num_before, cpu_before = _num_labels(clients), served.cpu_seconds()
    window = _window(clients, plan.steady_seconds)
    measured.steady_labels_per_second, measured.steady_p50_seconds, measured.steady_p99_seconds = window
    used = served.cpu_seconds() - cpu_before
    measured.server_cpu_seconds_per_label = used / max(1, _num_labels(clients) - num_before)
    pace.interval_seconds = 0.0


def _window(clients: list[LabelClient], seconds: float) -> tuple[float, float, float]:
    """Labels per second, median and 99th percentile of the latency, over the time from now, but for its start."""
    time.sleep(min(1.0, seconds / 4))
    begin = time.monotonic()
    time.sleep(seconds - min(1.0, seconds / 4))
    end = time.monotonic()
    done = [one for client in clients for one in list(client.timings) if begin <= one.answered < end]
    latencies = sorted(one.answered - one.due for one in done) or [float("nan")]
    return len(done) / (end - begin), statistics.median(latencies), latencies[int(0.99 * (len(latencies) - 1))]


def _num_labels(clients: list[LabelClient]) -> int:
    return sum(len(client.timings) for client in clients)


def _kill_again_and_again(
    clients: list[LabelClient],
    pace: Pace,
    served: ServedProcess,
    plan: Plan,
    measured: Measured,
    kill_database: Callable[[], None] | None,
) -> None:
    draw = random.Random(plan.seed)
    rounds = [served] * plan.num_kills + [None] * (plan.num_database_kills if kill_database is not None else 0)
    draw.shuffle(rounds)
    pace.hold_seconds = 1.2 * plan.lease_seconds
    for victim in rounds:
        time.sleep(draw.uniform(0.0, plan.longest_round_seconds))
        killed_at = time.monotonic()
        if victim is None:
            assert kill_database is not None
            kill_database()
            measured.num_database_kills += 1
        else:
            served.kill()
            served.start()
            measured.num_kills += 1
            if draw.random() < SHARE_KILLED_WHILE_STARTING:
                time.sleep(draw.uniform(0.0, LONGEST_START_SECONDS))
                served.kill()
                served.start()
                measured.num_kills_while_starting += 1
        measured.recovery_seconds.append(_wait_for_a_label(clients, killed_at, served) - killed_at)
    time.sleep(draw.uniform(0.0, plan.longest_round_seconds))
    # The last kill: nobody tries again, and what was on its way stays unknown.
    pace.stopping.set()
    served.kill()
    measured.num_kills += 1


def _wait_for_a_label(clients: list[LabelClient], killed_at: float, served: ServedProcess) -> float:
    """When the first label that was sent again or anew after the kill was acknowledged."""
    # An answer may have been on its way when the server died: it is read at once, the next takes a new connection.
    earliest = killed_at + 0.1
    deadline = killed_at + RECOVERY_SECONDS
    while time.monotonic() < deadline:
        recent = (takewhile(lambda one: one.answered > earliest, reversed(client.timings)) for client in clients)
        after = [one.answered for timings in recent for one in timings]
        if after:
            return min(after)
        time.sleep(0.005)
    raise RuntimeError(f"no label was taken for {RECOVERY_SECONDS:.0f} s after a kill: {served.last_words()}")


def _judge(
    location: str, folder: Path, clients: list[LabelClient], served: ServedProcess, plan: Plan, measured: Measured
) -> None:
    """Compares what the clients wrote down with the store, its own check, and an export."""
    with open_store(location, must_exist=True) as store:
        events, current = store.events(), store.current_labels()
        log = (entry for client in clients for entry in client.log)
        findings = check_history(log, events, current, annotators_per_pair=plan.annotators_per_pair)
        findings.other += [f"the store's own check: {sentence}" for sentence in store.check()]
        findings.other += _export_differs(store, folder / "export", plan)
    if "://" not in location:
        connection = sqlite3.connect(location)
        lines = [line for (line,) in connection.execute("PRAGMA integrity_check")]
        connection.close()
        findings.other += [f"integrity_check: {line}" for line in lines if line != "ok"]
    findings.other += [problem for client in clients for problem in client.problems]
    expected = "the store failed" if measured.num_database_kills else None
    findings.other += [f"the server wrote: {line}" for line in served.complaints(expected=expected)]
    measured.findings = findings
    measured.num_labels = len(current)
    measured.num_events = len(events)
    measured.num_retries = sum(client.num_retries for client in clients)


def _export_differs(store: LabelStore, folder: Path, plan: Plan) -> list[str]:
    """The exported labels against the store's current ones, word for word."""
    report = export_preferences(
        store.pairs(),
        store.current_labels(),
        folder,
        seed=plan.seed,
        settings=store.settings,
        include_gold=True,
        with_names=True,
        with_rationales=True,
        num_resamples=100,
    )
    lines = (report.folder / "labels.jsonl").read_text(encoding="utf-8").splitlines()
    exported = [label_event_from_row(json.loads(line)) for line in lines]
    by_id = {label.event_id: label for label in exported}
    current = {label.event_id: label for label in store.current_labels()}
    if len(exported) == len(by_id) and by_id == current:
        return []
    different = [event_id for event_id in by_id.keys() | current.keys() if by_id.get(event_id) != current.get(event_id)]
    return [f"the export has {len(exported)} labels, the store {len(current)}; {len(different)} differ"]


def table(measured: Measured, plan: Plan) -> str:
    """The run in words and figures, one line each."""
    findings = measured.findings
    recovery = sorted(measured.recovery_seconds) or [float("nan")]
    kills = f"{measured.num_kills} of the label server at work, {measured.num_kills_while_starting} while it started"
    if measured.num_database_kills:
        kills += f", {measured.num_database_kills} of the database server"
    rows = {
        "clients, labels per pair": f"{plan.num_clients}, {plan.annotators_per_pair}",
        "open throttle": f"{measured.open_labels_per_second:.0f} labels/s, latency p50 "
        f"{1000 * measured.open_p50_seconds:.0f} ms, p99 {1000 * measured.open_p99_seconds:.0f} ms",
        f"steady, {plan.steady_labels_per_second:.0f}/s due": f"{measured.steady_labels_per_second:.0f} labels/s, "
        f"latency p50 {1000 * measured.steady_p50_seconds:.0f} ms, p99 {1000 * measured.steady_p99_seconds:.0f} ms",
        "server's processor time": f"{1000 * measured.server_cpu_seconds_per_label:.1f} ms per label",
        "SIGKILL": kills,
        "from a kill to the next label": f"median {statistics.median(recovery):.2f} s, longest {recovery[-1]:.2f} s",
        "requests sent again": f"{measured.num_retries:,}",
        "operations acknowledged": f"{findings.num_acknowledged:,}",
        "never acknowledged": f"{findings.num_unacknowledged_kept} kept whole, "
        f"{findings.num_unacknowledged_absent} absent",
        "events, labels that stand": f"{measured.num_events:,}, {measured.num_labels:,}",
        "lost": str(len(findings.lost)),
        "doubled": str(len(findings.doubled)),
        "over k": str(len(findings.over_k)),
        "other violations": str(len(findings.other)),
        "whole run": f"{measured.run_seconds:.0f} s",
    }
    lines = [measured.database, *(f"  {name:<32}{value}" for name, value in rows.items())]
    shown = measured.violations[:MAX_SHOWN]
    return "\n".join([*lines, *(f"  ! {sentence}" for sentence in shown)])


def main() -> int:
    """Runs the plan on each database asked for, prints the tables, and returns 1 when anything was violated."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--database", choices=["sqlite", "postgresql", "both"], default="both")
    parser.add_argument("--kills", type=int, default=Plan.num_kills, help="how often the label server is killed")
    parser.add_argument("--seed", type=int, default=Plan.seed)
    asked = parser.parse_args()
    plan = Plan(num_kills=asked.kills, seed=asked.seed)
    sound = True
    if asked.database in ("sqlite", "both"):
        sound &= _run_and_show(plan, location=None)
    if asked.database in ("postgresql", "both"):
        binaries = postgresql_binaries()
        if binaries is None:
            print("PostgreSQL's pg_ctl is neither on the path nor in Debian's place: apt-get install postgresql")
            return 1
        durable = {"fsync": "on", "full_page_writes": "on", "synchronous_commit": "on"}
        with running_postgresql(binaries, **durable) as server, server.empty_database() as location:
            sound &= _run_and_show(plan, location=location, kill_database=server.kill_and_restart)
    return 0 if sound else 1


def _run_and_show(plan: Plan, *, location: str | None, kill_database: Callable[[], None] | None = None) -> bool:
    """One run; its folder is removed unless something was violated."""
    folder = Path(tempfile.mkdtemp(prefix="label-stress-"))
    location = location or str(folder / "labels.sqlite")
    measured = stress_label_server(location, folder, plan=plan, kill_database=kill_database)
    print(table(measured, plan), flush=True)
    if measured.violations:
        print(f"  the server's log, the export and (for SQLite) the store are in {folder}", flush=True)
    else:
        shutil.rmtree(folder)
    return not measured.violations


if __name__ == "__main__":
    sys.exit(main())
