"""The admin page: how far the project is, whether people agree, and who may come in."""

import threading
from collections.abc import Sequence
from dataclasses import asdict
from typing import Annotated, Any

from fastapi import Depends, FastAPI, Request
from jinja2 import Environment
from pydantic import Field
from starlette.responses import HTMLResponse, Response

from prefloop.collection.agreement_figures import Figure
from prefloop.collection.label_records import AccountRole
from prefloop.collection.label_statistics import AnnotatorStatistics, LabelStatistics, Rate, label_statistics
from prefloop.collection.store import LabelStore
from prefloop.contracts import Settings
from prefloop.errors import DataError
from prefloop.web import report_formats as formats
from prefloop.web.label_charts import statistics_charts
from prefloop.web.label_security import Gate, Person, RequestRefusedError, json_response, parsed, read_body

Row = tuple[str, ...]


class AccountBody(Settings):
    """A new account."""

    name: str = Field(min_length=1, max_length=100)
    role: AccountRole = "annotator"


class NameBody(Settings):
    """An account that there is."""

    name: str = Field(min_length=1, max_length=100)


class StatisticsDesk:
    """The statistics of the labels as they are now, worked out once for each state of the labels."""

    def __init__(self, store: LabelStore) -> None:
        self.store = store
        self._turn = threading.Lock()
        self._latest: tuple[Any, LabelStatistics] | None = None

    def statistics(self) -> LabelStatistics:
        """Raises DataError when the labels do not fit the pairs."""
        with self._turn:
            pairs, labels = self.store.pairs(), self.store.current_labels()
            state = (len(pairs), [label.event_id for label in labels])
            if self._latest is None or self._latest[0] != state:
                self._latest = (state, label_statistics(pairs, labels, seed=self.store.settings.seed))
            return self._latest[1]


def add_admin_routes(app: FastAPI, gate: Gate, pages: Environment) -> None:
    """The page and the figures behind it, and accounts. All of it is for admins."""
    store, desk = gate.store, StatisticsDesk(gate.store)
    admin, sent = Depends(gate.admin), Depends(read_body)

    @app.get("/admin")
    def page(person: Annotated[Person, admin]) -> Response:
        statistics = desk.statistics()
        context = {
            "settings": store.settings,
            "account": person.account,
            "progress": store.progress(),
            "statistics": statistics,
            "agreement_rows": agreement_rows(statistics),
            "cohen_rows": cohen_rows(statistics),
            "annotator_rows": [annotator_row(one) for one in statistics.annotators],
            "charts": statistics_charts(statistics),
            "accounts": store.accounts(),
        }
        return HTMLResponse(pages.get_template("label_admin.html").render(context))

    @app.get("/api/statistics")
    def figures(person: Annotated[Person, admin]) -> Response:
        del person
        return json_response({"statistics": asdict(desk.statistics()), "progress": asdict(store.progress())})

    @app.post("/api/accounts")
    def add_account(person: Annotated[Person, admin], body: Annotated[bytes, sent], request: Request) -> Response:
        del person
        asked = parsed(AccountBody, body)
        try:
            token = store.add_account(asked.name, role=asked.role)
        except DataError as problem:
            raise RequestRefusedError(422, "account", str(problem)) from None
        return json_response({"name": asked.name.strip(), "link": gate.personal_link(token, request)})

    @app.post("/api/accounts/link")
    def new_link(person: Annotated[Person, admin], body: Annotated[bytes, sent], request: Request) -> Response:
        del person
        asked = _known(store, parsed(NameBody, body))
        return json_response({"name": asked.name, "link": gate.personal_link(store.new_link(asked.name), request)})

    @app.post("/api/accounts/deactivate")
    def deactivate(person: Annotated[Person, admin], body: Annotated[bytes, sent]) -> Response:
        asked = _known(store, parsed(NameBody, body))
        if asked.name == person.name:
            raise RequestRefusedError(409, "yourself", "You cannot shut yourself out. Let another admin do it.")
        store.deactivate(asked.name)
        return json_response({"name": asked.name})


def _known(store: LabelStore, asked: NameBody) -> NameBody:
    if asked.name not in {account.name for account in store.accounts()}:
        raise RequestRefusedError(404, "account", "There is no account of this name.")
    return asked


def agreement_rows(statistics: LabelStatistics) -> list[Row]:
    """Name, value, interval, pairs and note of each statistic over all annotators."""
    figures = statistics.agreement
    return [
        ("Percent agreement", *_figure_cells(figures.percent_agreement, as_percent=True)),
        ("Krippendorff’s alpha, nominal", *_figure_cells(figures.krippendorff_alpha_nominal)),
        ("Krippendorff’s alpha, ordinal", *_figure_cells(figures.krippendorff_alpha_ordinal)),
        ("Fleiss’ kappa", *_figure_cells(figures.fleiss_kappa)),
    ]


def cohen_rows(statistics: LabelStatistics) -> list[Row]:
    """Both names, value, interval, pairs and note, for each two annotators with a pair in common."""
    return [(one.first, one.second, *_figure_cells(one.kappa)) for one in statistics.agreement.cohen_kappas]


def _figure_cells(figure: Figure, *, as_percent: bool = False) -> Row:
    if as_percent:
        value, interval = formats.percent(figure.value), formats.percent_interval(figure.ci95)
    else:
        value = formats.DASH if figure.value is None else two_decimals([figure.value])
        interval = "" if figure.ci95 is None else f"[{two_decimals(figure.ci95)}]"
    return value, interval, formats.number(figure.num_pairs), figure.note


def two_decimals(values: Sequence[float]) -> str:
    """One number, or two as bounds, with two decimals and a proper minus."""
    return " to ".join(f"{round(value, 2) + 0.0:.2f}".replace("-", "\u2212") for value in values)


def annotator_row(one: AnnotatorStatistics) -> Row:
    """Name, labels, skips, seconds per label, left side, consensus, gold and repeats of one annotator."""
    return (
        one.annotator,
        formats.number(one.num_labels),
        formats.number(one.num_skips),
        formats.duration(one.median_seconds),
        _rate_cell(one.side_bias.left_as_displayed),
        _rate_cell(one.consensus),
        _rate_cell(one.gold),
        _rate_cell(one.self_consistency),
    )


def _rate_cell(rate: Rate) -> str:
    """A share with its interval and its number of trials."""
    if rate.rate is None:
        return formats.DASH
    share, interval = formats.percent(rate.rate, num_decimals=0), formats.percent_interval(rate.ci95, num_decimals=0)
    # Lines break between the three and never within one.
    return " ".join(part.replace(" ", formats.SPACE) for part in (share, interval, f"n = {rate.num_trials}"))
