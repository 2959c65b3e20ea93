"""The page in headless Chromium against the stub server: every flow is clicked through."""

from __future__ import annotations

import ast
import json
import re
import shlex
import shutil

import pytest

pytest.importorskip("playwright", reason="playwright is not installed")

from playwright.sync_api import expect, sync_playwright
from stub_server import GUIDED, INSTRUCTIONS, MARKUP, PLAIN, Stub

CHROMIUM = next(
    filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None
)
pytestmark = pytest.mark.skipif(CHROMIUM is None, reason="no Chromium is found on PATH")

QUESTION = 'What\'s "new" & good?\n\nTell me; $HOME `x` \\ é 日本'
PATIENCE_MS = 60_000
"""A machine may be busy with engines."""

expect.set_options(timeout=PATIENCE_MS)
PHONE, DESKTOP = {"width": 360, "height": 740}, {"width": 1280, "height": 900}


@pytest.fixture(scope="module")
def browser():
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=CHROMIUM, args=["--no-sandbox"])
        yield browser
        browser.close()


@pytest.fixture
def stub():
    with Stub() as stub:
        yield stub


@pytest.fixture
def opened(browser):
    """Opens the page; at the end nothing may have failed in it, or been asked of another host."""
    contexts, errors, hosts = [], [], set()

    def open_page(stub, viewport=DESKTOP, **more):
        context = browser.new_context(viewport=viewport, **more)
        contexts.append(context)
        page = context.new_page()
        page.set_default_timeout(PATIENCE_MS)
        page.on("pageerror", lambda error: errors.append(str(error)))
        page.on(
            "console", lambda message: errors.append(message.text) if refused(message) else None
        )
        page.on("request", lambda request: hosts.add(re.split(r"[/:]+", request.url)[1]))
        page.goto(stub.url)
        return page

    yield open_page
    for context in contexts:
        context.close()
    assert not errors
    assert hosts <= {"127.0.0.1"}


def refused(message):
    return "Content Security Policy" in message.text


def move(page, slider, value):
    page.locator(slider).evaluate(
        "(slider, value) => { slider.value = value; slider.dispatchEvent(new Event('input')) }",
        value,
    )


def ask(page, prompt=QUESTION):
    page.fill("#prompt", prompt)
    page.click("#answer")
    page.wait_for_selector("#guided .token")


def code(page):
    return page.text_content("#code")


def test_sliders_and_strength_go_into_the_guided_request_alone(opened, stub):
    page = opened(stub)
    assert page.locator("#sliders .slider").count() == len(INSTRUCTIONS)
    move(page, "#weight-friendly", 0.5)
    move(page, "#weight-brief", -1)
    move(page, "#beta", 1.5)
    ask(page)

    guided, unguided = sorted(stub.chats, key=lambda body: "vllm_xargs" not in body)
    assert guided.pop("vllm_xargs") == {
        "pad_weights": "friendly=0.5,brief=-1",
        "pad_beta": 1.5,
        "pad_explain": True,
    }
    assert guided == unguided
    assert unguided["messages"] == [{"role": "user", "content": QUESTION}]
    assert page.text_content("#unguided .answer-text") == PLAIN
    assert page.text_content("#guided .answer-text") == f"{GUIDED} (end)"


def test_answers_appear_while_they_are_written_and_can_be_stopped(opened, stub):
    stub.pause_s = 0.1
    page = opened(stub)
    page.fill("#prompt", QUESTION)
    page.click("#answer")
    expect(page.locator("#unguided .answer-text")).to_have_text(re.compile("getting a dog"))
    assert page.get_attribute("#guided", "aria-busy") == "true"
    page.click("#stop")
    page.wait_for_selector("#guided[aria-busy=false]")
    stopped = page.text_content("#unguided .answer-text")

    assert PLAIN.startswith(stopped)
    assert stopped != PLAIN
    assert page.locator("#stop").is_hidden()


def test_tokens_show_what_they_earned_to_pointers_and_keys(opened, stub):
    page = opened(stub)
    ask(page)
    changed = page.locator("#guided .token.changed")
    changed.first.hover()
    card = page.locator("#token-card")
    assert "logits" in card.text_content()
    assert "the base: “ the”" in card.text_content()
    page.mouse.move(5, 5)
    assert card.is_hidden()

    page.focus("#guided .answer-text")
    page.keyboard.press("ArrowRight")
    assert page.locator(".token.current").text_content() == GUIDED.split(" ")[0]
    page.keyboard.press("ArrowDown")
    assert "changed" in page.locator(".token.current").get_attribute("class")
    page.keyboard.press("Escape")
    assert card.is_hidden()


def test_a_card_stays_on_a_phones_screen(opened, stub):
    page = opened(stub, PHONE, has_touch=True)
    ask(page)
    for token in page.locator(".answer-text .token.changed > span").all():
        token.tap()
        expect(page.locator("#token-card")).to_be_visible()
        box = page.locator("#token-card").bounding_box()
        assert box["x"] >= 0
        assert box["x"] + box["width"] <= PHONE["width"]


def test_what_a_model_or_a_server_says_is_never_read_as_markup(opened, stub):
    stub.answer = MARKUP
    page = opened(stub)
    ask(page)
    assert page.text_content("#guided .answer-text") == f"{MARKUP} (end)"
    stub.refuse_chats = MARKUP
    page.click("#answer")
    page.wait_for_selector("#compare-problem:visible")
    assert page.text_content("#compare-problem") == MARKUP
    assert page.locator("main img, main b").count() == 0
    assert "broken" not in page.title()


def test_words_and_learned_prefixes_become_the_preference(opened, stub):
    page = opened(stub)
    page.click("#prefixes button >> text=funny")
    assert page.input_value("#words") == "funny"
    ask(page)
    guided = next(body for body in stub.chats if "vllm_xargs" in body)
    assert guided["vllm_xargs"] == {"pad_preference": "funny", "pad_explain": True}


def test_without_instructions_there_is_no_box_for_words(opened):
    with Stub(instructions=False, profiles=False, jobs=False) as stub:
        page = opened(stub)
        page.wait_for_selector("#sliders .slider")
        assert page.locator("#words-row").is_hidden()
        page.click("#tab-learn")
        assert "keeps no profiles" in page.text_content("#panel-learn")
        page.click("#tab-new")
        assert "makes no dimensions" in page.text_content("#panel-new")


def test_the_request_is_shown_as_curl_and_as_python(opened, stub):
    page = opened(stub)
    move(page, "#weight-friendly", 1)
    page.fill("#prompt", QUESTION)
    page.click("#request summary")
    command = shlex.split(code(page).replace("\\\n", ""))
    assert command[:2] == ["curl", stub.url.replace("/pad/", "/v1/chat/completions")]
    body = json.loads(command[command.index("-d") + 1])
    assert body["messages"][0]["content"] == QUESTION
    assert body["vllm_xargs"] == {"pad_weights": "friendly=1"}

    page.click("#code-language >> text=Python")
    (call,) = [node for node in ast.walk(ast.parse(code(page))) if is_create(node)]
    fields = {field.arg: ast.literal_eval(field.value) for field in call.keywords}
    assert fields.pop("extra_body") == {"vllm_xargs": body.pop("vllm_xargs")}
    assert fields == body


def is_create(node):
    return isinstance(node, ast.Call) and getattr(node.func, "attr", "") == "create"


def test_the_copy_button_copies(opened, stub):
    page = opened(stub, permissions=["clipboard-read", "clipboard-write"])
    page.click("#request summary")
    page.click("#copy")
    page.wait_for_selector("#copied:has-text('Copied')")
    assert page.evaluate("navigator.clipboard.readText()") == code(page)


def test_ten_choices_make_a_profile_whose_intervals_narrow_and_by_which_it_answers(opened, stub):
    page = opened(stub)
    page.click("#tab-learn")
    page.fill("#user", "Zoë & ä?#1")
    page.keyboard.press("Tab")
    page.click("#ask")
    widths = []
    for index in range(10):
        page.wait_for_selector(f"#question-number:has-text('Question {index + 1} of 10')")
        page.wait_for_selector("#chooser:visible")
        assert page.text_content("#text-A") == PLAIN
        expect(page.locator("#choose-a")).to_be_enabled()
        if index == 0:
            page.click("#choose-tie")
        elif index == 1:
            page.keyboard.press("b")
        else:
            page.click("#choose-a")
        count = f"{index + 1} choice" + ("s" if index else "")
        page.wait_for_selector(f"#profile-count:has-text('{count}')")
        page.wait_for_timeout(30)
        style = page.locator(".interval .range").first.get_attribute("style")
        low, high = map(float, re.findall(r"([\d.]+)%", style))
        widths.append(high - low)
    assert widths == sorted(widths, reverse=True)
    assert widths[-1] < 0.6 * widths[0]
    assert [choice["chosen"] for choice in stub.choices] == ["tie", 1, *[0] * 8]
    assert list(stub.users) == ["Zoë & ä?#1"]

    page.click("#answer-so")
    page.wait_for_selector("#panel-compare:visible")
    ask(page)
    assert page.locator("#weight-friendly").is_disabled()
    guided = [body for body in stub.chats if "vllm_xargs" in body][-1]
    assert guided["vllm_xargs"] == {"pad_user": "Zoë & ä?#1", "pad_explain": True}


def test_a_profile_can_start_from_a_sentence_or_from_the_sliders(opened, stub):
    page = opened(stub)
    page.wait_for_selector("#sliders .slider")
    move(page, "#weight-brief", 0.5)
    page.click("#tab-learn")
    page.click("#panel-learn summary")
    page.fill("#own-sentence", " short and a bit ironic ")
    page.keyboard.press("Enter")
    page.wait_for_selector("#profile-count:has-text('0 choices')")
    assert not any(
        " to " in value for value in page.locator(".interval .value").all_text_contents()
    )
    assert page.locator(".interval .range:visible").count() == 0
    assert "Choices will say" in page.text_content("#profile-hint")
    page.click("#from-sliders")
    expect(page.locator("#from-sliders")).to_be_enabled()
    page.wait_for_selector(".interval >> nth=3")
    page.click("#tab-compare")  # the answer to the PUT may still be on its way
    page.wait_for_selector("#steer-by:visible")

    assert stub.stated[0] == {"sentence": "short and a bit ironic"}
    assert stub.stated[1]["weights"]["brief"] == 0.5
    assert set(stub.stated[1]["weights"]) == set(INSTRUCTIONS)


def test_a_profile_can_be_forgotten(opened, stub):
    stub.users["me"] = 3
    page = opened(stub)
    page.click("#tab-learn")
    page.wait_for_selector("#profile-count:has-text('3 choices')")
    page.on("dialog", lambda dialog: dialog.accept())
    page.click("#forget")
    page.wait_for_selector("#profile-hint:has-text('Nothing yet')")
    assert stub.users == {}


def test_a_sentence_becomes_a_slider(opened, stub):
    page = opened(stub)
    page.click("#tab-new")
    page.click("#dimension-form .chips button >> nth=0")
    page.click("#make")
    page.wait_for_selector("#job-title:has-text('Learning “pirate”')")
    assert page.locator("#make").is_disabled()
    assert page.locator("#job-progress").evaluate("bar => bar.value") == pytest.approx(0.3)
    page.reload()  # the job goes on, and the page finds it again
    page.wait_for_selector("#job-title:has-text('Learning “pirate”')")
    stub.finish_job(state="done", progress=1, message="served", adapter="with-pirate")
    page.click("#job-use")
    assert page.locator("#weight-pirate").input_value() == "1"
    ask(page)
    guided = [body for body in stub.chats if "vllm_xargs" in body][-1]
    assert guided["vllm_xargs"] == {
        "pad_weights": "pirate=1",
        "pad_adapter": "with-pirate",
        "pad_explain": True,
    }


def test_a_job_that_fails_or_is_refused_says_why(opened, stub):
    page = opened(stub)
    page.click("#tab-new")
    page.fill("#dimension-name", "brief")
    page.fill("#dimension-sentence", "Answer briefly.")
    page.click("#make")
    page.wait_for_selector("#job-problem:has-text('there is a dimension brief already')")
    page.fill("#dimension-name", "pirate")
    page.click("#make")
    page.wait_for_selector("#job-title:has-text('Learning')")
    stub.finish_job(state="failed", message=f"no room on the disk {MARKUP}")
    page.wait_for_selector("#job-problem:visible")
    assert MARKUP in page.text_content("#job-problem")
    assert page.locator("#job-use").is_hidden()
    assert page.locator("#make").is_enabled()


def test_the_gallery_sets_prompt_and_sliders_and_answers(opened, stub):
    page = opened(stub)
    card = page.locator(".gallery-card").first
    prompt = card.locator("h3").text_content()
    card.click()
    page.wait_for_selector("#guided .token")
    assert page.input_value("#prompt") == prompt
    assert stub.chats[-1]["messages"][0]["content"] == prompt


def test_a_server_with_a_key_asks_for_it_once_and_again_if_it_is_wrong(opened):
    with Stub(key="secret") as stub:
        page = opened(stub)
        page.wait_for_selector("#key-dialog[open]")
        page.fill("#key", "wrong")
        page.keyboard.press("Enter")
        page.wait_for_selector("#key-hint:has-text('does not take this key')")
        page.fill("#key", "secret")
        page.click("#key-form .primary")
        page.wait_for_selector("#sliders .slider")
        ask(page)
        page.click("#request summary")
        assert "secret" not in page.content()
        assert 'Authorization: Bearer $PAD_API_KEY"' in code(page)


def test_a_server_that_is_gone_is_said(opened, stub):
    page = opened(stub)
    page.wait_for_selector("#sliders .slider")
    page.route("**/v1/**", lambda route: route.abort())
    page.fill("#prompt", QUESTION)
    page.click("#answer")
    page.wait_for_selector("#compare-problem:has-text('does not answer')")


@pytest.mark.parametrize("viewport", [PHONE, DESKTOP], ids=["phone", "desktop"])
def test_nothing_is_wider_than_the_screen_in_any_tab(opened, stub, viewport):
    stub.answer = "x" * 300 + " " + GUIDED
    stub.users["me"] = 3
    page = opened(stub, viewport)
    ask(page)
    page.click("#request summary")
    for tab in ("compare", "learn", "new"):
        page.click(f"#tab-{tab}")
        page.wait_for_selector(f"#panel-{tab}:visible")
        assert page.evaluate("document.documentElement.scrollWidth") <= viewport["width"]


def test_the_keyboard_alone_reaches_tabs_sliders_and_the_answer(opened, stub):
    page = opened(stub)
    page.wait_for_selector("#sliders .slider")
    page.focus("#tab-compare")
    page.keyboard.press("ArrowRight")
    page.wait_for_selector("#panel-learn:visible")
    page.keyboard.press("ArrowLeft")
    page.wait_for_selector("#panel-compare:visible")
    page.focus("#prompt")
    page.keyboard.type("Hello?")
    reached = []
    for _ in range(6):
        page.keyboard.press("Tab")
        reached.append(page.evaluate("document.activeElement.id"))
    assert reached[:2] == ["answer", "reset"]
    assert "weight-positive" in reached
    page.focus("#weight-positive")
    page.keyboard.press("ArrowRight")
    page.focus("#prompt")
    page.keyboard.press("Control+Enter")
    page.wait_for_selector("#guided .token")
    assert stub.chats[-1]["messages"][0]["content"] == "Hello?"


def test_every_control_has_a_name(opened, stub):
    stub.users["me"] = 3
    page = opened(stub)
    ask(page)
    for tab in ("compare", "learn", "new"):
        page.click(f"#tab-{tab}")
        nameless = page.evaluate(
            """() => [...document.querySelectorAll(
                'button, input, textarea, select, [role=radiogroup], progress')]
            .filter((one) => one.checkVisibility() && !one.textContent.trim() && !one.labels?.length
                && !one.getAttribute('aria-label') && !one.getAttribute('aria-labelledby'))
            .map((one) => one.outerHTML)"""
        )
        assert nameless == []
