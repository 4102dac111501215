"""What models and people write is text in the browser: with the content security policy and without."""

from collections.abc import Iterator
from typing import Any
from urllib.parse import quote

import pytest
from hostile_texts import HOSTILE
from label_projects import TIMES
from playwright.sync_api import Browser, BrowserContext, Page, expect

from prefloop.collection.accounts import name_key
from prefloop.collection.label_records import ProjectSettings, StoredPair, Submission
from prefloop.collection.store import LabelStore, open_store
from prefloop.records import Comparison, Completion, Message
from prefloop.web.label_server import running_server

# What a browser shows of a text: it leaves out nothing, but ends lines its own way.
SAME = "([selector, text]) => document.querySelector(selector).textContent === text"

READY = """() => !document.querySelector("#work").hidden
  && document.querySelector("#state-text").textContent === "Saved" """
SHOWN = """() => [...["#prompt", "#left-text", "#right-text"].map(one => document.querySelector(one).textContent),
  document.querySelectorAll("#work :is(script, img, svg, iframe, style, link, object, embed, a, form)").length]"""


def test_there_are_enough_of_them_and_no_two_are_alike() -> None:
    assert len(set(HOSTILE)) == len(HOSTILE) >= 120


def hostile_names() -> list[str]:
    """The texts as names: no longer than names may be, and told apart where the store takes two for the same."""
    names: dict[str, str] = {}
    for number, text in enumerate(HOSTILE):
        name = text[:96].strip()
        if name_key(name) in names:
            name = f"{name}{number}"
        names[name_key(name)] = name
    return list(names.values())


NAMES = hostile_names()


@pytest.fixture(scope="module")
def store(tmp_path_factory: pytest.TempPathFactory) -> Iterator[LabelStore]:
    """Each text is a prompt, a turn, an answer, a rationale and a person's name; the last is the project's name too."""
    settings = ProjectSettings(
        name=HOSTILE[0],
        guidelines="\n".join(HOSTILE),
        annotators_per_pair=100,
        gold_share=0.0,
        repeat_share=0.0,
    )
    with open_store(tmp_path_factory.mktemp("hostile") / "labels.sqlite", settings=settings) as made:
        made.add_pairs([hostile_pair(number, text) for number, text in enumerate(HOSTILE)])
        for number, (name, text) in enumerate(zip(NAMES, HOSTILE, strict=True)):
            made.add_account(name)
            # So far apart that all earlier leases have run out, and spread over ten pairs.
            now = 10_000.0 * number
            task = made.next_tasks(name, num=number % 10 + 1, now=now)[-1]
            body = {"submission_id": f"of-{task.task_id}", "task_id": task.task_id, "choice": "left"}
            made.submit(name, Submission.model_validate({**body, **TIMES, "rationale": text}), now=now)
        yield made


def hostile_pair(number: int, text: str) -> StoredPair:
    prompt: Any = text if number % 2 else (Message("system", text), Message("user", text))
    return StoredPair(Comparison(text, prompt, Completion(f"{text} A"), Completion(f"{text} B", ended=False)))


@pytest.fixture(params=[True, False], ids=["with policy", "without policy"])
def page(request: pytest.FixtureRequest, store: LabelStore, chromium: Browser) -> Iterator[Page]:
    """An admin's page; `url` of the server is its base. Any dialog or request to elsewhere is kept in `betrayed`."""
    with running_server(store, csp=request.param) as url:
        context = chromium.new_context(base_url=url)
        made = context.new_page()
        betrayed: list[str] = []
        made.on("dialog", lambda dialog: betrayed.append(dialog.message))
        made.on("request", lambda one: betrayed.append(one.url) if not one.url.startswith((url, "data:")) else None)
        made.add_init_script("window.hacked = 0")
        yield made
        assert made.evaluate("window.hacked") == 0
        assert betrayed == []
        context.close()


def sign_in(context: BrowserContext, token: str) -> None:
    assert context.request.get(f"/join/{token}").ok


def test_none_runs_on_the_label_page(store: LabelStore, page: Page) -> None:
    name = f"Reader {page.evaluate('Math.random()')}"
    sign_in(page.context, store.add_account(name, role="admin"))
    page.goto("/")
    expect(page.locator("#work")).to_be_visible()
    assert page.locator("h1").inner_text() == HOSTILE[0]
    assert page.evaluate(SAME, ["#guidelines .text", store.settings.guidelines])
    seen = set()
    for number in range(len(HOSTILE)):
        page.wait_for_function(READY)
        # What is shown is what was asked for, letter by letter, and made no element.
        prompt, left, right, num_made = page.evaluate(SHOWN)
        assert {left[-2:], right[-2:]} == {" A", " B"}
        text = left[:-2]
        assert text in HOSTILE
        assert right[:-2] == text
        assert prompt in (text, f"System{text}User{text}")
        assert num_made == 0
        assert page.evaluate("window.hacked") == 0
        seen.add(text)
        page.evaluate("text => { document.querySelector('#rationale').value = text; }", text)
        page.keyboard.press("1")
        if number == 3:
            page.keyboard.press("u")
            expect(page.locator(".was-chosen")).to_be_visible()
            page.keyboard.press("1")
    assert seen == set(HOSTILE)
    expect(page.locator("#state-text")).to_have_text("Saved")
    rationales = [label.rationale for label in store.current_labels() if label.annotator == name]
    assert sorted(rationales) == sorted(map(as_typed, HOSTILE))


def as_typed(text: str) -> str:
    """A rationale as a text area gives it: without spaces around."""
    return text.strip().strip("\ufeff")


def test_none_runs_on_the_admin_page(store: LabelStore, page: Page) -> None:
    sign_in(page.context, store.new_link("Admin") if has(store, "Admin") else store.add_account("Admin", role="admin"))
    page.goto("/admin")
    expect(page.locator("#people-title")).to_be_visible()
    names = page.locator(".people tbody th").all_text_contents()
    assert set(NAMES) <= set(names)
    assert page.locator("main :is(script, img, iframe, style, link, object, embed, a)").count() == 0
    assert page.locator("svg.chart").count() == 4
    assert page.evaluate("[...document.querySelectorAll('*')].every(one => ![...one.attributes].some("
                         "attribute => attribute.name.startsWith('on')))")  # fmt: skip
    page.locator("#account-name").fill("<img src=x onerror=window.hacked=1> " + str(page.evaluate("Math.random()")))
    page.get_by_role("button", name="Add").click()
    expect(page.locator("#outcome-text")).to_contain_text("<img src=x onerror=window.hacked=1>")


def has(store: LabelStore, name: str) -> bool:
    return name in {account.name for account in store.accounts()}


@pytest.mark.parametrize("number", [0, 12, 60])
def test_none_runs_as_the_name_of_whoever_is_signed_in(store: LabelStore, page: Page, number: int) -> None:
    sign_in(page.context, store.new_link(NAMES[number]))
    page.goto("/")
    expect(page.locator("#work")).to_be_visible()
    assert page.evaluate(SAME, [".person", NAMES[number]])


def test_none_runs_from_the_address(page: Page) -> None:
    for text in HOSTILE[::8]:
        page.goto(f"/join/{quote(text, safe='')}")
        assert page.evaluate("window.hacked") == 0
        page.goto(f"/?{quote(text)}#{quote(text)}")
        assert page.evaluate("window.hacked") == 0
