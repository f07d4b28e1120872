"""Test the page in a real browser: with the keyboard, at the width of a phone, with samples and uploaded clips."""

import json
import shutil
from collections.abc import Iterator
from pathlib import Path

import pandas as pd
import pytest

from qamoe.serving.model_loader import open_model
from tests.fixtures.browser import CHROMIUM, Tab, tab
from tests.fixtures.served import WORDS, Server, running

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(CHROMIUM is None, reason="no chromium, chromium-browser or google-chrome on the path"),
]
READY = "clip !== null && document.getElementById('score').textContent !== '–' && !asking"
RIGHT, TAB = ("ArrowRight", 39), ("Tab", 9)


@pytest.fixture(scope="module")
def browser(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Tab]:
    with tab(tmp_path_factory.mktemp("chromium")) as page:
        yield page


@pytest.fixture
def page(browser: Tab, server: Server) -> Iterator[Tab]:
    """The page with its first sample; afterwards check that it contacted only this server and logged no error."""
    browser.requests.clear()
    browser.errors.clear()
    browser.size(1280, 900)
    browser.open(f"http://127.0.0.1:{server.port}/")
    browser.until(READY)
    yield browser
    outside = [
        at for at in browser.requests if not at.startswith((f"http://127.0.0.1:{server.port}/", "data:", "blob:"))
    ]
    assert outside == []
    assert browser.errors == []


def text(page: Tab, name: str) -> str:
    return page.run(f"document.getElementById('{name}').textContent")


def state(page: Tab) -> str:
    """Return everything that a slider changes: score, interval, trust and routing weights."""
    return page.run(
        "JSON.stringify([document.getElementById('score').textContent, document.getElementById('band').style.cssText,"
        "[...document.querySelectorAll('[role=meter]')].map((m) => [m.ariaValueText, m.firstChild.style.width]),"
        "[...document.querySelectorAll('#experts b')].map((b) => b.textContent)])"
    )


def test_the_first_sample_is_played_and_scored(page):
    page.until("document.getElementById('player').readyState >= 2")
    assert page.run("document.getElementById('player').videoWidth") == 240
    assert text(page, "score").startswith("+")
    assert "90 % interval" in text(page, "interval")
    assert page.run("document.querySelectorAll('[role=meter]').length") == 3
    shares = page.run("[...document.querySelectorAll('#experts b')].map((b) => b.textContent)")
    assert len(shares) == 3
    assert any(share.endswith("%") for share in shares)


@pytest.mark.parametrize("kind", ["missing", "noise"])
@pytest.mark.parametrize("modality", ["text", "audio", "vision"])
def test_a_slider_moved_by_keys_moves_score_trust_and_experts(page, modality, kind):
    before = state(page)
    page.run(f"document.getElementById('{modality}-{kind}').click()")
    page.run(f"document.getElementById('{modality}-severity').focus()")
    page.press(*RIGHT, times=60)
    assert page.run(f"document.getElementById('{modality}-severity').value") == "60"
    page.until("!asking")
    damaged = state(page)
    assert damaged != before
    page.run("document.getElementById('clean').click()")
    page.until("!asking")
    assert state(page) == before


def test_tab_reaches_every_control_and_each_has_a_name(page):
    page.run("document.body.focus()")
    reached = set()
    for _ in range(40):
        page.press(*TAB)
        reached.add(page.run("document.activeElement.id || document.activeElement.textContent.trim()"))
    severities = {f"{m}-severity" for m in ("text", "audio", "vision")}
    assert {"file", "player", "words", "clean", "a dull film" + "label −2.00"} | severities <= reached
    tree = page.call("Accessibility.getFullAXTree")["nodes"]
    roles = {"slider", "radio", "button", "textbox", "meter"}
    named = [n["name"]["value"] for n in tree if not n["ignored"] and n["role"]["value"] in roles]
    assert len(named) >= 15
    assert all(named)
    page.until("document.getElementById('spoken').textContent.includes('Trust: Text')")


def test_markup_in_a_text_is_not_interpreted(page):
    page.run("document.querySelectorAll('#samples button')[1].click()")
    page.until(f"{READY} && document.getElementById('words').value.startsWith('a lovely')")
    assert page.run("document.getElementById('words').value") == WORDS
    assert page.run("document.querySelectorAll('#samples b, #samples img').length") == 0
    assert WORDS in text(page, "samples")


def test_an_uploaded_clip_is_played_and_scored(page, film, tmp_path: Path, monkeypatch):
    monkeypatch.setenv("QAMOE_WEIGHTS", str(tmp_path / "none"))  # with a recogniser the clip would have a text
    before = state(page)
    root = page.call("DOM.getDocument")["root"]["nodeId"]
    node = page.call("DOM.querySelector", nodeId=root, selector="#file")["nodeId"]
    page.call("DOM.setFileInputFiles", nodeId=node, files=[str(film)])
    page.until(f"chosen === 2 && {READY}")
    assert page.run("document.getElementById('player').src").startswith("blob:")
    assert page.run("document.getElementById('text-severity').disabled")
    assert state(page) != before
    assert page.run("document.querySelector('[role=meter]').ariaValueText") == "missing"
    page.run("document.getElementById('words').value = 'a lovely video'")
    page.run("document.getElementById('words').dispatchEvent(new Event('input'))")
    page.until("!asking && !document.getElementById('text-severity').disabled")


def test_a_file_without_media_is_refused_with_a_message(page, tmp_path: Path):
    (tmp_path / "notes.mp4").write_text("not a video")
    root = page.call("DOM.getDocument")["root"]["nodeId"]
    node = page.call("DOM.querySelector", nodeId=root, selector="#file")["nodeId"]
    page.call("DOM.setFileInputFiles", nodeId=node, files=[str(tmp_path / "notes.mp4")])
    page.until("document.getElementById('problem').textContent !== ''")
    assert "mp4, mov, avi, wav" in text(page, "problem")
    assert text(page, "score") == "–"
    # The browser logs the status code, and that it cannot play the file.
    page.errors[:] = [c for c in page.errors if "422" not in c and "blob:" not in c]


def test_a_clip_that_the_server_dropped_is_sent_again(page, server):
    before = state(page)
    server.service.clips._cached.clear()
    page.run("follow()")
    page.until("!asking")
    assert state(page) == before
    assert len(server.service.clips) == 1
    page.errors[:] = [c for c in page.errors if "404" not in c]


def test_the_page_of_a_multilabel_model_says_labels(browser, tiny_multilabel, corpus, tmp_path: Path):
    folder = tiny_multilabel(tmp_path / "qamoe" / "1")
    clips = tmp_path / "corpus"
    shutil.copytree(corpus, clips)
    manifest = pd.read_csv(clips / "manifest.csv", dtype=str, keep_default_na=False)
    manifest.assign(label="happy;sad").to_csv(clips / "manifest.csv", index=False)
    with running(lambda: open_model("", folder), clips) as labels:
        browser.open(f"http://127.0.0.1:{labels.port}/")
        browser.until(READY)
        assert (text(browser, "score-title"), text(browser, "output")) == ("Labels", "labels")
        assert text(browser, "score") == "happy, sad, fear"


def test_it_fits_a_phone(page, server):
    page.size(390, 844)
    page.open(f"http://127.0.0.1:{server.port}/")
    page.until(READY)
    assert page.run("document.documentElement.scrollWidth") <= 390
    small = page.run(
        "JSON.stringify([...document.querySelectorAll('#right input, #right button, .kinds label, #samples button')]"
        ".filter((c) => c.offsetParent && c.getBoundingClientRect().height < 34).map((c) => c.id))"
    )
    assert json.loads(small) == []
    page.run("document.getElementById('vision-severity').scrollIntoView({block: 'center'})")
    assert page.run("document.getElementById('score').getBoundingClientRect().top") >= 0  # visible next to the sliders


def test_the_api_page_lists_every_path(browser, server):
    browser.open(f"http://127.0.0.1:{server.port}/docs")
    browser.until("document.getElementById('list').getAttribute('aria-busy') === 'false'")
    heads = browser.run("[...document.querySelectorAll('h2')].map((h) => h.textContent)")
    assert "POST /clips/{clip_id}/predict" in heads
    assert '"float32": string' in browser.run("document.body.textContent")
