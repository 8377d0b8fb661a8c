"""The page as people use it: in a real browser, by mouse and keyboard."""

from __future__ import annotations

import shutil
import subprocess
import sys
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from rlaif.records import Pair, Prompt
from rlaif.store import RunStore
from rlaif.store.people import People

Served = Callable[..., Any]
Window = Callable[..., Any]
SERIOUS = ("serious", "critical")


@pytest.fixture
def copy(run: Path, tmp_path: Path) -> Path:
    """The run, to be changed."""
    shutil.copytree(run, tmp_path / "run")
    return tmp_path / "run"


def test_open_filter_and_read_a_pair(run: Path, served: Served, window: Window) -> None:
    server = served(run)
    with window() as page:
        page.goto(server.address)
        all_of_them = page.inner_text(".found")
        page.select_option("[name=principle]", "no-harm")
        page.select_option("[name=side]", "first")
        page.wait_for_url("**principle=no-harm**side=first**")
        page.wait_for_function(
            "t => document.querySelector('.found').innerText !== t", arg=all_of_them
        )
        filtered = page.inner_text(".found")
        page.reload()
        assert page.inner_text(".found") == filtered
        assert page.input_value("[name=side]") == "first"
        page.go_back()
        page.goto(server.address + "/?text=steal")
        page.click("ol.pairs a.prompt >> nth=0")
        page.wait_for_selector("h1:has-text('Pair')")
        assert page.locator("section.question").count() == 6
        page.click("details.lazy summary >> nth=0")
        page.wait_for_selector(".shown pre")
        assert "Which response does what the person asked?" in page.inner_text(".shown >> nth=0")


def keys(page: Any, pressed: str) -> None:
    """Presses keys one after the other, each when what the last one did is shown."""
    for key in pressed:
        before = page.get_attribute("[name=id]", "value")
        page.keyboard.press(key)
        page.wait_for_function(
            "id => (document.querySelector('[name=id]') || {}).value !== id", arg=before
        )


def test_ten_pairs_by_keyboard_undo_reload_and_a_kill(
    copy: Path, served: Served, window: Window
) -> None:
    server = served(copy)
    people = People(copy)
    with window(expected=("ERR_CONNECTION_REFUSED", "htmx:sendError", "htmx:afterRequest")) as page:
        page.goto(server.address + "/label")
        page.fill("[name=who]", "Ann")
        page.keyboard.press("Enter")
        page.wait_for_selector("#work")
        keys(page, "abtsa")
        page.keyboard.press("n")
        page.keyboard.type("a bad pair")  # letters in the note press no button
        page.keyboard.press("Escape")
        keys(page, "babab")
        assert len(people.standing()) == 10
        assert Counter(d.choice in ("tie", "skip") for d in people.read())[True] == 2
        assert [d.note for d in people.read()].count("a bad pair") == 1
        last = people.read()[-1].pair_id
        keys(page, "u")
        assert page.get_attribute("[name=pair]", "value") == last
        assert "9 of" in page.inner_text("[role=status]")
        page.reload()
        assert "9 of" in page.inner_text("[role=status]")
        assert page.get_attribute("[name=pair]", "value") == last  # its queue goes on where it was

        server.kill()
        page.keyboard.press("a")
        page.wait_for_selector("#trouble:not([hidden])")
        assert "not saved" in page.inner_text("#trouble")
        assert len(People(copy).standing()) == 9
        server.start()
        keys(page, "a")  # the same pair, still on the screen
        assert page.is_hidden("#trouble")
        assert len(People(copy).standing()) == 10
        assert "10 of" in page.inner_text("[role=status]")


def test_two_people_and_their_agreement(copy: Path, served: Served, window: Window) -> None:
    server = served(copy)
    with window() as ann, window() as bob:
        for page, who in ((ann, "Ann"), (bob, "Bob")):
            page.goto(f"{server.address}/label?who={who}")
        for key in "abab":
            keys(ann, key)
            keys(bob, key)
        decided = People(copy).standing()
        assert {pair for who, pair in decided if who == "Ann"} == {
            pair for who, pair in decided if who == "Bob"
        }
        bob.reload()
        assert "Ann and Bob" in bob.inner_text(".agree")
        assert "4 pairs" in bob.inner_text(".agree")


def test_two_runs(run: Path, other: Path, served: Served, window: Window) -> None:
    server = served(run, other)
    with window() as page:
        page.goto(server.address)
        page.click("nav >> text=Compare")
        page.wait_for_selector("h1:has-text('Labels that changed')")
        assert page.locator("ol.pairs > li").count() > 0
        assert "no-harm" in page.inner_text("table >> nth=0")
        page.click("ol.pairs summary >> nth=0")
        assert page.is_visible("ol.pairs table >> nth=0")


def test_a_principle_is_edited(run: Path, served: Served, window: Window) -> None:
    server = served(run)
    with window() as page:
        page.set_default_timeout(300_000)
        page.goto(server.address + "/principles")
        form = page.locator("section", has=page.locator("h2:text-is('no-harm')"))
        form.locator("textarea").fill("Which response is longer?")
        form.locator("button").click()
        form.locator(".rejudged").wait_for()
        changed = int(form.locator(".rejudged h3").inner_text().split()[0])
        assert changed > 0
        assert form.locator("li.changed").count() == changed


HOSTILE = '<script>document.title="x"</script><img src=x onerror="document.title=1"></textarea>'


def test_hostile_texts_do_nothing(copy: Path, served: Served, window: Window) -> None:
    pair = Pair(Prompt.user(HOSTILE), HOSTILE + " first", HOSTILE + " second")
    with RunStore(copy) as store:
        store.table("pairs").append([pair])
    server = served(copy)
    with window() as page:
        for path in (f"/pair/{pair.id}", "/?text=onerror", f"/label?who=Ann&pair={pair.id}"):
            page.goto(server.address + path)
            assert HOSTILE in page.inner_text("main")
            assert page.locator("main img, main script").count() == 0
            assert "rlaif" in page.title()


PAGES = ["/", "/?principles=1&principle=no-harm&low=0.1", "PAIR", "/label", "/label?who=Ann"]
PAGES += ["/principles", "/training", "/compare"]


@pytest.mark.parametrize("scheme", ["light", "dark"])
@pytest.mark.parametrize("width", [1280, 390])
def test_no_serious_fault_by_axe(
    run: Path, other: Path, served: Served, window: Window, width: int, scheme: str
) -> None:
    from axe_playwright_python.sync_playwright import Axe

    server = served(run, other)
    pair = RunStore.open_readonly(run).table("pairs").read()[0].id
    with window(width, scheme) as page:
        for path in PAGES:
            page.goto(server.address + path.replace("PAIR", f"/pair/{pair}"))
            for more in page.locator("details").all()[:3]:
                more.evaluate("d => d.open = true")
            page.wait_for_timeout(200)
            wide = page.evaluate("document.documentElement.scrollWidth")
            assert wide <= width, (path, wide)
            found = Axe().run(page).response["violations"]
            told = [(v["id"], v["nodes"][0]["html"]) for v in found if v["impact"] in SERIOUS]
            assert told == [], path


def test_curves_grow_while_a_model_trains(copy: Path, served: Served, window: Window) -> None:
    """A real training beside the open page, which nobody loads again."""
    server = served(copy)
    program = "from rlaif.cli import main; main()"
    options = ["epochs=120", "held_out=0", "batch_size=4"]
    words = [w for option in options for w in ("--set", f"train.reward.{option}")]
    command = [sys.executable, "-c", program, "train", "reward", str(copy), *words]
    with window() as page:
        page.goto(server.address + "/training")
        assert "Nothing was trained" in page.inner_text("#curves")
        page.evaluate("window.same = true")
        training = subprocess.Popen(command, stdout=subprocess.DEVNULL)
        try:
            page.wait_for_selector("#curves figure svg")
            seen = {page.inner_text("#curves h2")}
            while training.poll() is None:
                page.wait_for_timeout(500)
                seen.add(page.inner_text("#curves h2"))
        finally:
            training.kill()
            assert training.wait() == 0
        assert len(seen) >= 3, seen
        assert any("going on" in text for text in seen)
        for _ in range(60):  # no `wait_for_function`: it evaluates text, which the page forbids
            if "going on" not in page.inner_text("#curves h2"):
                break
            page.wait_for_timeout(500)
        assert "going on" not in page.inner_text("#curves h2")
        assert page.evaluate("window.same") is True
