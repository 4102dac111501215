"""The stage in which somebody chooses: simulated annotators here, the same over HTTP, or people in the browser."""

import select
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import asdict
from pathlib import Path

import httpx

from prefloop.collection.aggregation import aggregate
from prefloop.collection.agreement import AgreementReport, agreement_report
from prefloop.collection.annotators import cast, label_pairs, left_as_displayed_share
from prefloop.collection.label_client import LabelClient, label_everything
from prefloop.collection.label_records import LabelEvent, ProjectSettings, StoredPair
from prefloop.collection.pairs import label_rows
from prefloop.collection.store import LabelStore, open_store
from prefloop.collection.vote_annotators import PEOPLE, vote_labels
from prefloop.data.sources import record_to_row
from prefloop.errors import RunError
from prefloop.records import Comparison
from prefloop.records import Label as LabelRecord
from prefloop.runs.stage_context import StageContext
from prefloop.runs.stage_settings import Label
from prefloop.runs.stages_data import read_comparisons
from prefloop.runs.stored_pairs import showable
from prefloop.worlds import tutorials

START_SECONDS = 30.0
POLL_SECONDS = 0.5


def run_label(settings: Label, context: StageContext) -> None:
    """Writes labels.jsonl, preferences.jsonl and agreement.json; labels given through a server stay in their store.

    Simulated annotators over HTTP leave labels.db in the stage's folder, which is made anew with the stage. People's
    labels are kept in the pipeline's folder, as <stage>_labels.db, where no other run of the stage removes them. With
    votes, agreement.json also says under `people` how far voters and askers agree, the simulated readers left out.
    """
    comparisons = read_comparisons(context.resolve(settings.comparisons))
    if settings.by == "simulated":
        labels = label_pairs(comparisons, cast(tutorials.gold_score, slope=settings.slope), seed=context.seed)
        left_share = left_as_displayed_share(labels, seed=context.seed)
    elif settings.by == "votes":
        readers = settings.simulated_readers
        labels = vote_labels(comparisons, num_readers=readers, slope=settings.slope, seed=context.seed)
        left_share: dict[str, float] = {}  # Nobody was shown a left side.
    else:
        num_read = len(comparisons)
        comparisons = showable(comparisons)
        if len(comparisons) < num_read:
            context.progress.note(f"  {num_read - len(comparisons):,} pairs with an empty answer are not shown")
        by_server = _labels_over_http if settings.by == "simulated_over_http" else _labels_by_people
        events = by_server(settings, context, comparisons)
        labels = [LabelRecord(one.pair_id, one.annotator, one.choice) for one in events if one.choice is not None]
        left_share = _left_as_displayed(events)
    aggregation = aggregate(comparisons, labels, method=settings.aggregation)
    report = agreement_report(labels, seed=context.seed)
    context.write_rows("labels.jsonl", label_rows(labels))
    context.write_rows("preferences.jsonl", map(record_to_row, aggregation.pairs))
    figures = {
        **asdict(report),
        "num_tied": aggregation.num_tied,
        "num_preferences": len(aggregation.pairs),
        "left_as_displayed_share": left_share,
    }
    if settings.by == "votes":
        figures["people"] = asdict(_people_alone(labels, context))
    context.write_json("agreement.json", figures)
    names = ", ".join(dict.fromkeys(one.annotator for one in labels))
    told = [f"{report.num_labels:,} choices on {report.num_pairs:,} pairs by {names}", _agreement_text(report)]
    context.progress.note("  " + "; ".join(part for part in told if part))


def _people_alone(labels: Sequence[LabelRecord], context: StageContext) -> AgreementReport:
    """How far voters and askers agree, without anybody who is simulated."""
    report = agreement_report([one for one in labels if one.annotator in PEOPLE], seed=context.seed)
    if report.num_compared_pairs:
        compared = f"{report.num_compared_pairs:,} pairs have both voters and an asker"
        context.progress.note(f"  {compared}: {_agreement_text(report)}")
    return report


def _labels_over_http(settings: Label, context: StageContext, comparisons: Sequence[Comparison]) -> list[LabelEvent]:
    """The three characters, each a client of a label server of its own process."""
    annotators = cast(tutorials.gold_score, slope=settings.slope)
    project = ProjectSettings(
        name=context.name, annotators_per_pair=len(annotators), gold_share=0.0, repeat_share=0.0, seed=context.seed
    )
    place = context.path / "labels.db"
    with open_store(place, settings=project) as store:
        store.add_pairs([StoredPair(one) for one in comparisons])
        tokens = {one.name: store.add_account(one.name) for one in annotators}
        num_wanted = len(comparisons) * len(annotators)
        lock, done = threading.Lock(), 0

        def labelled() -> None:
            nonlocal done
            with lock:
                done += 1
                context.progress.update(done, {"labels": done})

        def work(number: int, url: str) -> int:
            annotator = annotators[number]
            with LabelClient(url, tokens[annotator.name]) as client:
                return label_everything(client, annotator, seed=context.seed, labelled=labelled)

        with (
            label_server(place) as url,
            context.progress.stage(context.name, num_wanted, headline=("labels",)),
            ThreadPoolExecutor(len(annotators)) as threads,
        ):
            for result in [threads.submit(work, number, url) for number in range(len(annotators))]:
                result.result()
        return store.current_labels()


def _labels_by_people(settings: Label, context: StageContext, comparisons: Sequence[Comparison]) -> list[LabelEvent]:
    """Opens the page and waits for enough labelled pairs."""
    project = ProjectSettings(
        name=context.name,
        guidelines=settings.guidelines,
        annotators_per_pair=settings.annotators_per_pair,
        gold_share=0.0,
        repeat_share=0.0,
        seed=context.seed,
    )
    place = context.path.parent / f"{context.name}_labels.db"
    with open_store(place, settings=project) as store:
        store.add_pairs([StoredPair(one) for one in comparisons])
        enough = min(settings.enough_pairs, len(comparisons))
        if _num_labelled(store) < enough:
            with label_server(place, opens_browser=True):
                _wait_for_people(store, context, enough)
        context.progress.note(f"  {_num_labelled(store):,} pairs are labelled; the labels are kept in {place}")
        return store.current_labels()


def _wait_for_people(store: LabelStore, context: StageContext, enough: int) -> None:
    context.progress.note(
        f"  Choose between the answers in the browser. {enough} labelled pairs are enough to go on; with fewer the "
        "reward model would know little more than chance.\n"
        f"  Every choice is kept at once. Ctrl-C stops; to go on: {context.resume_command}"
    )
    asks = sys.stdin.isatty()
    with context.progress.stage(context.name, enough, headline=("labelled", "still_to_label")):
        while (num := _num_labelled(store)) < enough:
            context.progress.update(num, {"labelled": num, "still_to_label": enough - num})
            time.sleep(POLL_SECONDS)
        context.progress.update(enough, {"labelled": num, "still_to_label": 0})
    if asks:
        context.progress.note("  That is enough. Press Enter to train on your choices; more of them make it better.")
        while not select.select([sys.stdin], [], [], POLL_SECONDS)[0]:
            if store.progress().num_pairs_complete == store.progress().num_pairs:
                return
        sys.stdin.readline()


def _num_labelled(store: LabelStore) -> int:
    """Pairs on which somebody said something that a preference can come from."""
    return len({one.pair_id for one in store.current_labels() if one.choice in ("left", "right")})


@contextmanager
def label_server(place: Path, *, opens_browser: bool = False) -> Iterator[str]:
    """`prefloop label serve` in a process of its own while the block runs; gives its address.

    Raises RunError when it does not come up.
    """
    port = _free_port()
    url = f"http://127.0.0.1:{port}"
    command = [sys.executable, "-m", "prefloop.cli.main", "label", "serve", str(place), "--port", str(port)]
    output = None if opens_browser else subprocess.DEVNULL
    command += [] if opens_browser else ["--no-browser"]
    # Ended by SIGTERM, this process would leave the server behind.
    in_main_thread = threading.current_thread() is threading.main_thread()
    previous = signal.signal(signal.SIGTERM, signal.default_int_handler) if in_main_thread else None
    with subprocess.Popen(command, stdout=output) as server:  # noqa: S603 - our own command
        try:
            _wait_until_up(url, server)
            yield url
        finally:
            server.terminate()
            try:
                server.wait(10)
            except subprocess.TimeoutExpired:
                server.kill()
            if previous is not None:
                signal.signal(signal.SIGTERM, previous)


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


def _wait_until_up(url: str, server: subprocess.Popen[bytes]) -> None:
    deadline = time.monotonic() + START_SECONDS
    while time.monotonic() < deadline:
        if server.poll() is not None:
            raise RunError(f"the label server ended at once with status {server.returncode}; what it said is above")
        try:
            if httpx.get(f"{url}/health").status_code == 200:
                return
        except httpx.TransportError:
            time.sleep(0.05)
    raise RunError(f"the label server did not come up within {START_SECONDS:.0f} s")


def _left_as_displayed(events: Sequence[LabelEvent]) -> dict[str, float]:
    """Per annotator, the share of left among left and right choices, by the side on the screen."""
    sided: dict[str, list[bool]] = {}
    for one in events:
        if one.displayed_choice in ("left", "right"):
            sided.setdefault(one.annotator, []).append(one.displayed_choice == "left")
    return {annotator: sum(choices) / len(choices) for annotator, choices in sided.items()}


def _agreement_text(report: AgreementReport) -> str:
    """Agreement in words; a figure that does not exist (alpha of choices that are all the same) is left out."""
    parts = [f"they agree {report.percent_agreement:.1%}" if report.percent_agreement is not None else ""]
    if report.percent_agreement_ci95 is not None:
        low, high = report.percent_agreement_ci95
        parts[0] += f" [{low:.1%}, {high:.1%}]"
    if report.krippendorff_alpha is not None:
        parts.append(f"alpha {report.krippendorff_alpha:.2f}")
    return ", ".join(part for part in parts if part)
