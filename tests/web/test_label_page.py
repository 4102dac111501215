"""The label page in a real browser: what was clicked is what is stored, whatever happens to the line between."""

import re
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest
from label_projects import chosen_texts, new_project, say
from playwright.sync_api import Browser, BrowserContext, Page, Route, expect

from prefloop.collection.label_records import StoredPair
from prefloop.collection.store import LabelStore
from prefloop.records import Comparison, Completion, Message
from prefloop.web.label_server import running_server

PATIENCE_MILLISECONDS = 20_000


@dataclass
class Desk:
    """A project, its server, and Ben at a browser."""

    store: LabelStore
    url: str
    token: str
    context: BrowserContext
    page: Page
    errors: list[str] = field(default_factory=list)
    said: dict[str, str] = field(default_factory=dict)

    def open(self) -> None:
        self.page.goto(f"{self.url}/join/{self.token}")
        expect(self.page.locator("#work")).to_be_visible()

    def shown(self) -> tuple[str, str, str]:
        """Prompt and both answers as they stand on the screen."""
        texts = [self.page.locator(one).inner_text() for one in ("#prompt", "#left-text", "#right-text")]
        return texts[0], texts[1], texts[2]

    def note(self, choice: str) -> str:
        """Remembers that the pair on the screen is about to get this choice."""
        prompt, left, right = self.shown()
        self.said[prompt] = {"left": left, "right": right}.get(choice, choice)
        return prompt

    def press(self, key: str, choice: str) -> None:
        """Presses a key; the next pair (or the end) is there at once."""
        prompt = self.note(choice)
        self.page.keyboard.press(key)
        assert not self.page.locator("#work").is_visible() or self.shown()[0] != prompt

    def wait_for_state(self, text: str) -> None:
        expect(self.page.locator("#state-text")).to_have_text(text)

    def stored(self) -> dict[str, str]:
        return chosen_texts(self.store, "Ben")


@contextmanager
def desk_with(chromium: Browser, folder: Path, *, num_pairs: int = 10, **browser: Any) -> Iterator[Desk]:
    with new_project(folder, num_pairs=num_pairs, annotators_per_pair=1) as store:
        token = store.add_account("Ben")
        with running_server(store) as url:
            context = chromium.new_context(**browser)
            context.set_default_timeout(PATIENCE_MILLISECONDS)
            # The browser begins to ask about requests a moment after the first route is said, and a press in between
            # goes past it. This route matches nothing, and has it ask from the start.
            context.route("**/no-such-path", lambda route: route.abort())
            page = context.new_page()
            desk = Desk(store, url, token, context, page)
            page.on("pageerror", lambda error: desk.errors.append(str(error)))
            page.on("console", lambda line: desk.errors.append(line.text) if line.type == "error" else None)
            yield desk
            context.close()


@pytest.fixture(autouse=True)
def _patience() -> None:
    expect.set_options(timeout=PATIENCE_MILLISECONDS)


@pytest.fixture
def desk(chromium: Browser, tmp_path: Path) -> Iterator[Desk]:
    with desk_with(chromium, tmp_path) as made:
        yield made


def test_ten_of_ten_are_stored_as_clicked(desk: Desk) -> None:
    """By keyboard, with an undo, a reload, a cut line, a double click and a key held down."""
    desk.open()
    desk.press("1", "left")
    desk.press("ArrowRight", "right")
    before = desk.shown()
    desk.press("2", "right")
    desk.wait_for_state("Saved")
    desk.page.keyboard.press("u")
    expect(desk.page.locator("#right")).to_have_class(re.compile("was-chosen"))
    assert desk.shown() == before
    desk.press("ArrowLeft", "left")
    desk.wait_for_state("Saved")
    before = desk.shown()
    desk.page.reload()
    expect(desk.page.locator("#work")).to_be_visible()
    assert desk.shown() == before
    desk.press("t", "tie")
    desk.wait_for_state("Saved")

    desk.context.set_offline(True)
    for key, choice in (("1", "left"), ("b", "both_bad"), ("2", "right")):
        desk.press(key, choice)
    desk.wait_for_state("Offline, 3 waiting")
    expect(desk.page.locator("#pause-title")).to_have_text("Waiting for the server")
    assert len(desk.stored()) == 4
    desk.context.set_offline(False)
    desk.wait_for_state("Saved")

    expect(desk.page.locator("#work")).to_be_visible()
    desk.page.wait_for_timeout(300)
    desk.note("left")
    desk.page.get_by_role("button", name="A is better").dblclick()
    desk.page.wait_for_timeout(300)
    desk.note("right")
    for _ in range(5):
        desk.page.keyboard.down("2")
    desk.page.keyboard.up("2")
    desk.press("s", "skip")

    expect(desk.page.locator("#pause-title")).to_have_text("All done")
    desk.wait_for_state("Saved")
    assert len(desk.said) == 10
    assert desk.stored() == desk.said
    assert len(desk.store.events()) == 12  # The label that was taken back, and its undoing.
    labels = desk.store.current_labels()
    assert {label.swapped for label in labels} == {True, False}
    assert all(label.submitted_at >= label.opened_at > 1.7e9 for label in labels)
    assert desk.store.check() == []
    assert [error for error in desk.errors if "ERR_INTERNET_DISCONNECTED" not in error] == []


def test_a_lost_acknowledgement_is_asked_for_again_and_is_one_label(desk: Desk) -> None:
    desk.open()
    lost: list[int] = []

    def lose_first(route: Route) -> None:
        if lost:
            route.continue_()
        else:
            lost.append(route.fetch().status)
            route.abort()

    desk.page.route("**/api/labels", lose_first)
    desk.press("1", "left")
    desk.press("2", "right")
    desk.wait_for_state("Saved")
    assert lost == [200]
    assert desk.stored() == desk.said
    assert len(desk.store.events()) == 2


def test_a_reload_with_labels_on_their_way_sends_them_and_shows_none_of_them_again(desk: Desk) -> None:
    desk.open()
    desk.page.route("**/api/labels", lambda route: route.abort())
    desk.press("1", "left")
    desk.press("2", "right")
    desk.wait_for_state("Offline, 2 waiting")
    desk.page.reload()
    desk.wait_for_state("Offline, 2 waiting")
    assert desk.stored() == {}
    desk.page.unroute("**/api/labels")
    desk.page.reload()
    desk.wait_for_state("Saved")
    expect(desk.page.locator("#work")).to_be_visible()
    assert desk.shown()[0] not in desk.said
    assert desk.stored() == desk.said


def test_labels_are_sent_after_the_server_was_gone_for_a_while(desk: Desk) -> None:
    desk.open()
    answers = iter([500, 503, 429])

    def fail(route: Route) -> None:
        status = next(answers, None)
        if status is None:
            route.continue_()
        else:
            route.fulfill(status=status, body='{"error": {"reason": "store", "message": "not now"}}')

    desk.page.route("**/api/labels", fail)
    desk.press("1", "left")
    desk.wait_for_state("Offline, 1 waiting")
    desk.wait_for_state("Saved")
    assert desk.stored() == desk.said


def test_undo_takes_back_what_was_never_sent_without_the_server(desk: Desk) -> None:
    desk.open()
    desk.page.route("**/api/*", lambda route: route.abort())
    desk.press("1", "left")
    desk.wait_for_state("Offline, 1 waiting")
    before = desk.shown()
    desk.page.keyboard.press("Shift+Digit4")
    desk.press("1", "left")
    desk.wait_for_state("Offline, 2 waiting")
    desk.page.keyboard.press("Control+z")
    desk.wait_for_state("Offline, 1 waiting")
    assert desk.shown() == before
    expect(desk.page.locator('[data-strength="4"]')).to_have_attribute("aria-pressed", "true")
    # What was tried may have arrived: only the server can say, and it does not answer.
    desk.page.keyboard.press("Backspace")
    expect(desk.page.locator("#notice-text")).to_contain_text("may already be with the server")
    desk.press("2", "right")
    desk.page.unroute("**/api/*")
    desk.wait_for_state("Saved")
    assert desk.stored() == desk.said


def test_undo_of_a_waiting_label_sends_it_first(desk: Desk) -> None:
    desk.open()
    held: list[Route] = []
    desk.page.route("**/api/labels", lambda route: route.continue_() if held else held.append(route))
    before = desk.shown()
    desk.press("1", "left")
    desk.page.keyboard.press("u")
    # A choice while the undo waits would land on a pair that is about to go.
    desk.page.keyboard.press("2")
    held[0].continue_()
    expect(desk.page.locator("#left")).to_have_class(re.compile("was-chosen"))
    assert desk.shown() == before
    desk.press("2", "right")
    desk.wait_for_state("Saved")
    assert desk.stored() == desk.said
    assert [event.event for event in desk.store.events()] == ["label", "undo", "label"]


def test_an_undo_whose_answer_is_lost_takes_back_one_label(desk: Desk) -> None:
    desk.open()
    for _ in range(2):
        desk.press("1", "left")
    desk.wait_for_state("Saved")

    def lose(route: Route) -> None:
        route.fetch()
        route.abort()

    desk.page.route("**/api/undo", lose)
    desk.page.keyboard.press("u")
    expect(desk.page.locator("#notice-text")).to_contain_text("Press undo again")
    desk.page.unroute("**/api/undo")
    desk.page.keyboard.press("u")
    expect(desk.page.locator("#left")).to_have_class(re.compile("was-chosen"))
    assert len(desk.stored()) == 1
    desk.press("2", "right")
    desk.wait_for_state("Saved")
    assert desk.stored() == desk.said


def test_with_nothing_to_undo_it_says_so(desk: Desk) -> None:
    desk.open()
    desk.page.get_by_role("button", name="Undo").click()
    expect(desk.page.locator("#notice-text")).to_have_text("There is no choice of yours to take back.")
    desk.page.get_by_role("button", name="Close this message").click()
    expect(desk.page.locator("#notice")).to_be_hidden()


def test_when_the_session_ends_labels_are_kept_until_the_person_is_back(desk: Desk) -> None:
    desk.open()
    desk.press("1", "left")
    desk.wait_for_state("Saved")
    desk.token = desk.store.new_link("Ben")
    desk.press("2", "right")
    desk.wait_for_state("Signed out, 1 waiting")
    expect(desk.page.get_by_role("alert").locator("a")).to_have_attribute("href", "/sign-in")
    desk.press("1", "left")
    assert len(desk.stored()) == 1
    desk.open()
    desk.wait_for_state("Saved")
    assert desk.stored() == desk.said


def test_signing_in_again_in_another_tab_is_noticed(desk: Desk) -> None:
    desk.open()
    desk.token = desk.store.new_link("Ben")
    desk.press("1", "left")
    desk.wait_for_state("Signed out, 1 waiting")
    desk.page.evaluate("document.dispatchEvent(new Event('visibilitychange'))")
    desk.wait_for_state("Signed out, 1 waiting")
    assert desk.context.request.get(f"{desk.url}/join/{desk.token}").ok
    desk.page.evaluate("document.dispatchEvent(new Event('visibilitychange'))")
    desk.wait_for_state("Saved")
    expect(desk.page.locator("#signed-out")).to_be_hidden()
    assert desk.stored() == desk.said


def test_labels_of_one_person_are_never_sent_as_another(desk: Desk) -> None:
    desk.open()
    other = desk.store.add_account("Ada")
    desk.context.request.get(f"{desk.url}/join/{other}")
    desk.press("1", "left")
    desk.wait_for_state("Stopped, 1 waiting")
    assert desk.store.events() == []
    desk.page.reload()
    expect(desk.page.locator(".person")).to_have_text("Ada")
    desk.wait_for_state("Saved")
    assert desk.store.events() == []
    desk.open()
    desk.wait_for_state("Saved")
    assert desk.stored() == desk.said


def test_a_pair_that_others_completed_is_passed_over_plainly(desk: Desk) -> None:
    desk.open()
    desk.store.add_account("Ada")
    for _ in range(10):
        say(desk.store, "Ada", now=4e9)
    for _ in range(3):  # As many as the page holds.
        desk.page.keyboard.press("1")
        expect(desk.page.locator("#notice-text")).to_contain_text("completed by others")
        desk.wait_for_state("Saved")
    expect(desk.page.locator("#pause-title")).to_have_text("All done")
    desk.wait_for_state("Saved")
    assert desk.stored() == {}


def test_a_number_used_twice_is_said_plainly(desk: Desk) -> None:
    desk.open()
    body = '{"error": {"reason": "id_reused", "message": "used before"}}'
    desk.page.route("**/api/labels", lambda route: route.fulfill(status=409, body=body))
    desk.page.keyboard.press("1")
    expect(desk.page.locator("#notice-text")).to_contain_text("already has another answer")
    desk.wait_for_state("Saved")
    expect(desk.page.locator("#work")).to_be_visible()


def test_strength_and_rationale_go_with_the_choice_and_keys_rest_while_typing(desk: Desk) -> None:
    desk.open()
    before = desk.shown()
    desk.page.keyboard.press("r")
    desk.page.keyboard.type("1 2 3 4 s u t b: B is\nshorter?")
    desk.page.keyboard.press("Backspace")
    assert desk.shown() == before
    desk.page.keyboard.press("Escape")
    desk.page.keyboard.press("Shift+Digit3")
    desk.page.get_by_role("button", name="clearly").click()
    desk.press("2", "right")
    expect(desk.page.locator("#rationale")).to_have_value("")
    expect(desk.page.locator('[aria-pressed="true"]')).to_have_count(0)
    desk.page.get_by_role("button", name="hardly").click()
    desk.press("3", "tie")
    desk.wait_for_state("Saved")
    first, second = desk.store.current_labels()
    assert (first.strength, first.rationale) == (4, "1 2 3 4 s u t b: B is\nshorter")
    assert (second.strength, second.rationale, second.choice) == (None, "", "tie")
    assert desk.stored() == desk.said


def test_help_lists_the_keys_and_rests_the_others(desk: Desk) -> None:
    desk.open()
    before = desk.shown()
    desk.page.keyboard.press("?")
    expect(desk.page.get_by_role("dialog", name="Keys")).to_be_visible()
    desk.page.keyboard.press("1")
    desk.page.keyboard.press("Escape")
    expect(desk.page.locator("#help")).to_be_hidden()
    assert desk.shown() == before
    assert desk.store.events() == []


def test_buttons_do_what_keys_do(desk: Desk) -> None:
    desk.open()
    names = {"A is better": "left", "B is better": "right", "Tie": "tie", "Both bad": "both_bad", "Skip": "skip"}
    for name, choice in names.items():
        desk.page.wait_for_timeout(300)
        desk.note(choice)
        desk.page.get_by_role("button", name=name, exact=True).click()
    desk.wait_for_state("Saved")
    assert desk.stored() == desk.said
    assert desk.errors == []


def test_a_click_before_anybody_can_have_read_the_pair_counts_for_nothing(desk: Desk) -> None:
    desk.open()
    desk.page.wait_for_timeout(300)
    desk.note("left")
    button = desk.page.get_by_role("button", name="A is better")
    button.click()
    button.click(delay=0)
    desk.wait_for_state("Saved")
    assert desk.stored() == desk.said


def test_a_screen_reader_finds_its_way(desk: Desk) -> None:
    desk.open()
    tree = desk.page.locator("body").aria_snapshot()
    for line in ("banner", "main", 'heading "Answer A" [level=2]', 'region "Text of answer B"', "progressbar"):
        assert line in tree, tree
    assert 'button "A is better"' in tree
    desk.press("1", "left")
    assert desk.page.evaluate("document.activeElement.id") == "prompt-title"
    expect(desk.page.locator("#progress-text")).to_have_text("1 done, 9 left")
    expect(desk.page.get_by_role("status").and_(desk.page.locator("#state-said"))).to_have_text("Saved")
    assert desk.page.evaluate("document.documentElement.lang") == "en"
    unnamed = desk.page.evaluate(
        "[...document.querySelectorAll('button, textarea, a')].filter(one => !one.labels?.length && "
        "!one.textContent.trim() && !one.ariaLabel).length"
    )
    assert unnamed == 0


def test_turns_cut_answers_and_guidelines_are_shown(chromium: Browser, tmp_path: Path) -> None:
    prompt = (Message("system", "Be brief."), Message("user", "Why?\n  indented"))
    pair = Comparison("one", prompt, Completion("x", ended=False), Completion("y"))
    with new_project(tmp_path, num_pairs=0, guidelines="Read both.\nThen choose.") as store:
        store.add_pairs([StoredPair(pair)])
        with running_server(store) as url, chromium.new_context() as context:
            page = context.new_page()
            page.goto(f"{url}/join/{store.add_account('Ben')}")
            expect(page.locator("#prompt")).to_have_text("SystemBe brief.UserWhy?\n  indented")
            cut = {
                page.locator(f"#{side}-text").inner_text(): page.locator(f"#{side}-cut") for side in ("left", "right")
            }
            expect(cut["x"]).to_have_text("(cut at the length limit)")
            expect(cut["y"]).to_be_hidden()
            expect(page.get_by_role("complementary", name="Guidelines")).to_contain_text("Read both.\nThen choose.")


def test_when_others_hold_the_rest_the_page_waits_and_says_why(chromium: Browser, tmp_path: Path) -> None:
    with desk_with(chromium, tmp_path, num_pairs=2) as desk:
        desk.store.add_account("Ada")
        desk.store.next_tasks("Ada", num=2)
        desk.page.goto(f"{desk.url}/join/{desk.token}")
        expect(desk.page.locator("#pause-title")).to_have_text("Nothing for you right now")
        for _ in range(2):
            say(desk.store, "Ada", "skip")
        desk.page.get_by_role("button", name="Look again").click()
        expect(desk.page.locator("#work")).to_be_visible()


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_a_telephone_shows_everything_and_colours_have_contrast(chromium: Browser, tmp_path: Path, scheme: Any) -> None:
    options = {"viewport": {"width": 360, "height": 740}, "has_touch": True, "is_mobile": True, "color_scheme": scheme}
    with desk_with(chromium, tmp_path, **options) as desk:
        desk.open()
        page = desk.page
        assert page.evaluate("document.documentElement.scrollWidth") <= 360
        left, right = page.locator("#left").bounding_box(), page.locator("#right").bounding_box()
        assert left is not None
        assert right is not None
        assert left["y"] + left["height"] <= right["y"]
        for name in ("A is better", "B is better", "Tie", "Both bad", "Skip", "Undo"):
            expect(page.get_by_role("button", name=name, exact=True)).to_be_in_viewport(ratio=1)
        page.wait_for_timeout(300)
        desk.note("right")
        page.get_by_role("button", name="B is better").tap()
        desk.wait_for_state("Saved")
        assert desk.stored() == desk.said
        assert (
            len({page.evaluate(f"getComputedStyle(document.body).{one}") for one in ("color", "backgroundColor")}) == 2
        )
        is_dark = page.evaluate(CONTRAST, ["--page", "#ffffff"]) > 4.5
        assert is_dark == (scheme == "dark")
        pairs = [("--ink", "--card"), ("--muted", "--card"), ("--muted", "--page"), ("--series-1", "--card")]
        pairs += [("--on-accent", "--series-1"), ("--on-accent", "--accent-strong"), ("--alarm", "--alarm-page")]
        for ink, paper in pairs:
            assert page.evaluate(CONTRAST, [ink, paper]) >= 4.5, (ink, paper)
        assert page.evaluate(CONTRAST, ["--line-strong", "--card"]) >= 3


# The contrast ratio of WCAG 2 between two colours, given as names of variables or as #rrggbb.
CONTRAST = """names => {
  const styles = getComputedStyle(document.documentElement);
  const luminance = name => {
    const text = name.startsWith("--") ? styles.getPropertyValue(name).trim() : name;
    const [r, g, b] = [1, 3, 5].map(at => parseInt(text.slice(at, at + 2), 16) / 255)
      .map(c => c <= 0.04045 ? c / 12.92 : ((c + 0.055) / 1.055) ** 2.4);
    return 0.2126 * r + 0.7152 * g + 0.0722 * b;
  };
  const [one, other] = names.map(luminance).sort((a, b) => b - a);
  return (one + 0.05) / (other + 0.05);
}"""


def test_a_personal_link_on_another_site_leads_to_the_page(desk: Desk) -> None:
    """The browser holds the fresh cookie back on that way; the sign-in page finds it and goes on."""
    mail = f'<a href="{desk.url}/join/{desk.token}">your link</a>'
    desk.page.route("http://mail.example/", lambda route: route.fulfill(body=mail, content_type="text/html"))
    desk.page.goto("http://mail.example/")
    desk.page.get_by_role("link").click()
    expect(desk.page.locator("#work")).to_be_visible()
    assert desk.page.url == f"{desk.url}/"
    assert desk.token not in desk.page.evaluate("JSON.stringify(performance.getEntries()) + document.referrer")


def test_name_and_password_lead_to_the_page_and_sign_out_leads_away(desk: Desk) -> None:
    desk.store.set_password("Ben", "correct horse")
    page = desk.page
    page.goto(desk.url)
    page.get_by_label("Name").fill("Ben")
    page.get_by_role("button", name="Sign in").click()
    expect(page.get_by_role("alert")).to_have_text("Give your name and your password.")
    page.get_by_label("Password").fill("wrong horse")
    page.get_by_role("button", name="Sign in").click()
    expect(page.get_by_role("alert")).to_have_text("The name and the password do not go together.")
    page.get_by_label("Password").fill("correct horse")
    page.keyboard.press("Enter")
    expect(page.locator("#work")).to_be_visible()
    page.get_by_role("button", name="Sign out").click()
    expect(page.get_by_label("Password")).to_be_visible()
    page.goto(desk.url)
    expect(page.get_by_label("Password")).to_be_visible()


def test_an_admin_adds_people_and_shuts_them_out(desk: Desk) -> None:
    page = desk.page
    page.goto(f"{desk.url}/join/{desk.store.add_account('Ada', role='admin')}")
    page.get_by_role("link", name="Statistics").click()
    page.get_by_label("Name").fill("Cleo")
    page.get_by_role("button", name="Add").click()
    link = page.locator("#outcome-link")
    expect(link).to_contain_text("/join/")
    token = link.inner_text().rpartition("/")[2]
    account = desk.store.account_of_link(token)
    assert account is not None
    assert (account.name, account.role) == ("Cleo", "annotator")
    page.get_by_role("button", name="Add").click()
    expect(page.locator("#outcome-text")).to_contain_text("There is an account called")
    page.reload()
    page.get_by_role("row", name="Cleo").get_by_role("button", name="Shut out").click()
    expect(page.locator("#outcome-text")).to_contain_text("can no longer come in")
    assert desk.store.account_of_link(token) is None
    assert [error for error in desk.errors if "422" not in error] == []
