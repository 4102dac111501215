"""The admin page: its tables say what the statistics say, its charts draw them, and nothing is worked out twice."""

import dataclasses
import re
from collections.abc import Iterator
from pathlib import Path

import pytest
from label_projects import new_project, say
from starlette.testclient import TestClient

from prefloop.collection import label_statistics as statistics_module
from prefloop.collection.agreement_figures import Figure
from prefloop.collection.label_statistics import label_statistics
from prefloop.collection.store import LabelStore
from prefloop.web import label_admin
from prefloop.web.label_admin import StatisticsDesk, agreement_rows, annotator_row, cohen_rows, two_decimals
from prefloop.web.label_app import label_app


@pytest.fixture
def store(tmp_path: Path) -> Iterator[LabelStore]:
    """Ada and Ben agree on two of three pairs; Ben skipped one."""
    with new_project(tmp_path, num_pairs=4) as made:
        made.add_account("Ada", role="admin")
        made.add_account("Ben")
        for name, choices in (("Ada", "left left left"), ("Ben", "left left right skip")):
            for choice in choices.split():
                label_own_side(made, name, choice)
        yield made


def label_own_side(store: LabelStore, name: str, choice: str) -> None:
    """A choice by the pair's own side, whichever way round it is displayed."""
    (task,) = store.next_tasks(name, num=1)
    other = {"left": "right", "right": "left"}
    say(store, name, other.get(choice, choice) if task.swapped else choice)


def statistics_of(store: LabelStore) -> statistics_module.LabelStatistics:
    return label_statistics(store.pairs(), store.current_labels(), seed=store.settings.seed)


def admin_client(store: LabelStore) -> TestClient:
    headers = {"Authorization": f"Bearer {store.new_link('Ada')}"}
    return TestClient(label_app(store, allowed_hosts={"testserver"}), headers=headers)


def test_the_tables_say_what_the_statistics_say(store: LabelStore) -> None:
    statistics = statistics_of(store)
    rows = {row[0]: row[1:] for row in agreement_rows(statistics)}
    assert rows["Percent agreement"][0] == "66.7\u00a0%"
    assert rows["Percent agreement"][2] == "3"
    # Two of three observed; by chance 1 * 2/3 + 0 * 1/3: kappa is (2/3 - 2/3) / (1 - 2/3) = 0.
    assert [row[:3] for row in cohen_rows(statistics)] == [("Ada", "Ben", "0.00")]
    ada, ben = map(annotator_row, statistics.annotators)
    assert ada[:4] == ("Ada", "3", "0", "10\u00a0s")
    assert ben[:4] == ("Ben", "3", "1", "10\u00a0s")
    assert ben[5].startswith("67\u00a0% [")
    assert ben[5].endswith("n\u00a0=\u00a03")
    assert ben[6] == "\u2013"


def test_the_page_shows_them_and_the_json_is_the_same(store: LabelStore) -> None:
    client = admin_client(store)
    page, figures = client.get("/admin").text, client.get("/api/statistics").json()
    for text in ("66.7\u00a0%", "Krippendorff", "Fleiss", "Ben", "Cohen", "first answer"):
        assert text in page
    expected = dataclasses.asdict(statistics_of(store))
    assert figures["statistics"]["agreement"]["percent_agreement"]["value"] == pytest.approx(2 / 3)
    assert figures["statistics"]["annotators"][1]["num_skips"] == 1
    assert set(figures["statistics"]) == set(expected)
    assert figures["progress"]["num_labels"] == 6


def test_the_page_has_its_four_charts_and_no_inline_style_or_script(store: LabelStore) -> None:
    page = admin_client(store).get("/admin").text
    assert page.count("<svg") == 4
    assert "style=" not in page
    assert not re.search(r"<script(?![^>]* src=)", page)
    assert not re.search(r"\son\w+=", page)


def test_an_empty_project_has_a_page_too(tmp_path: Path) -> None:
    with new_project(tmp_path, num_pairs=2) as store:
        store.add_account("Ada", role="admin")
        client = admin_client(store)
        page = client.get("/admin").text
        assert "Nobody has labelled a pair yet." in page
        assert "<svg" not in page
        assert client.get("/api/statistics").json()["statistics"]["agreement"]["percent_agreement"]["value"] is None


def test_statistics_are_worked_out_again_only_for_other_labels(
    store: LabelStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    calls: list[int] = []

    def counted(*arguments: object, **options: object) -> object:
        calls.append(1)
        return label_statistics(*arguments, **options)  # type: ignore[arg-type]

    monkeypatch.setattr(label_admin, "label_statistics", counted)
    desk = StatisticsDesk(store)
    assert desk.statistics() is desk.statistics()
    assert len(calls) == 1
    store.undo("Ben", "undo-number-1")
    assert desk.statistics().annotators[1].num_skips == 0
    say(store, "Ada", "tie")
    assert desk.statistics().annotators[0].num_labels == 4
    assert len(calls) == 3


def test_numbers_have_two_decimals_and_a_proper_minus() -> None:
    assert two_decimals([-0.126]) == "\u22120.13"
    assert two_decimals([-0.001, 1.0]) == "0.00 to 1.00"
    assert label_admin._figure_cells(Figure(None, None, 0, 0, "why")) == ("\u2013", "", "0", "why")


def test_an_admin_cannot_shut_herself_out(store: LabelStore) -> None:
    client = admin_client(store)
    assert client.post("/api/accounts/deactivate", json={"name": "Ada"}).json()["error"]["reason"] == "yourself"
    assert client.post("/api/accounts/deactivate", json={"name": "Nobody"}).status_code == 404
    assert client.post("/api/accounts/link", json={"name": "Nobody"}).status_code == 404
    assert client.post("/api/accounts", json={"name": " BEN"}).status_code == 422
    assert client.post("/api/accounts", json={"name": "Cleo", "role": "owner"}).status_code == 422
    link = client.post("/api/accounts", json={"name": " Cleo ", "role": "admin"}).json()
    assert link["name"] == "Cleo"
    assert link["link"].startswith("http://testserver/join/")
    account = store.account_of_link(link["link"].rpartition("/")[2])
    assert account is not None
    assert account.role == "admin"
