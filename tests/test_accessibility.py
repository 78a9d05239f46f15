"""The pages, asked in headless Chromium: readable, named, to be reached by keyboard, in light, in dark and in print."""

from __future__ import annotations

import json
import re
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from tests.browser import CHROMIUM, DRIVER, ENTER, RIGHT, SHIFT, SPACE, TAB, Browser, browser

pytest.importorskip("jinja2", reason="needs the extra `run`")

from alges_fast.annotation.page import Asked, Card, selection_page, shown
from alges_fast.pages import render
from alges_fast.project.status import NextStep
from alges_fast.windows import Window

pytestmark = pytest.mark.skipif(CHROMIUM is None, reason="no Chromium on PATH")

ASK = """
<script>
function luminance(rgb) {
  const [r, g, b] = rgb.map(v => v / 255).map(v => v <= 0.03928 ? v / 12.92 : ((v + 0.055) / 1.055) ** 2.4);
  return 0.2126 * r + 0.7152 * g + 0.0722 * b;
}
const numbers = colour => colour.match(/[\\d.]+/g).map(Number);
function ground(element) {
  for (let at = element; at; at = at.parentElement) {
    const colour = numbers(getComputedStyle(at).backgroundColor);
    if (colour.length === 3 || colour[3] === 1) return colour.slice(0, 3);
  }
  return matchMedia("(prefers-color-scheme: dark)").matches ? [18, 18, 18] : [255, 255, 255];
}
addEventListener("load", () => {
  const said = {faint: [], unnamed: [], unreachable: [], reached: 0};
  for (const element of document.querySelectorAll("body *")) {
    const style = getComputedStyle(element);
    const text = [...element.childNodes].some(node => node.nodeType === 3 && node.data.trim());
    if (text && !element.closest("svg, script, style") && element.getClientRects().length) {
      const [high, low] = [luminance(numbers(style.color)), luminance(ground(element))].sort((a, b) => b - a);
      const size = parseFloat(style.fontSize), large = size >= 24 || (size >= 18.66 && style.fontWeight >= 700);
      if ((high + 0.05) / (low + 0.05) < (large ? 3 : 4.5)) said.faint.push(element.outerHTML.slice(0, 120));
    }
    if (element.matches("img") && !element.alt) said.unnamed.push(element.outerHTML.slice(0, 60));
    if (element.matches("svg[role=img]") && !element.getAttribute("aria-label")) said.unnamed.push("svg");
    if (element.matches("input, select, button")) {
      if (!element.labels?.length && !element.getAttribute("aria-label") && !element.textContent.trim())
        said.unnamed.push(element.outerHTML.slice(0, 60));
    }
    if (element.matches("a[href], input, select, button, summary, [tabindex]")) {
      if (element.tabIndex < 0) said.unreachable.push(element.outerHTML.slice(0, 60)); else said.reached++;
    }
    const scrolls = element.scrollWidth > element.clientWidth + 1 && /auto|scroll/.test(style.overflowX);
    if (scrolls && element.tabIndex < 0 && !element.querySelector("a[href], [tabindex]"))
      said.unreachable.push("scrolls: " + element.outerHTML.slice(0, 60));
  }
  said.language = document.documentElement.lang;
  said.title = document.title;
  said.headings = document.querySelectorAll("h1").length;
  document.body.innerHTML = "<pre id=said></pre>";
  document.getElementById("said").textContent = "SAID" + JSON.stringify(said) + "DIAS";
});
</script>
"""


def chromium(tmp_path: Path, *arguments: str) -> str:
    assert CHROMIUM is not None
    command = [CHROMIUM, "--headless", "--no-sandbox", "--disable-gpu", f"--user-data-dir={tmp_path / 'profile'}"]
    done = subprocess.run([*command, *arguments], capture_output=True, text=True, timeout=120, check=True)
    return done.stdout


@pytest.fixture(scope="module")
def page() -> str:
    """A round's page with windows."""
    size = (96, 64)
    picture = shown(Image.new("RGB", size, (90, 40, 30)))
    windows = [Window("video01/a.png", 0, 0, 24, 16), Window("video01/a.png", 24, 16, 24, 16)]
    views = {"frame": picture, "gradient": picture, "prediction": picture}
    cards = [Card("video01/a.png", [0, 1], windows, size, 1.0, views)]
    of_all = {"class": "liver", "score": 0.5, "nearest": ""}
    rows = [{"rank": rank, "id": str(window), **of_all} for rank, window in enumerate(windows, 1)]
    asked = Asked("alges-img", 0, "frames", "model 0", "4x4")
    colours = [(200, 30, 30), (30, 200, 30)]
    sheets = {f"round000_sheet{number}.jpg": shown(Image.new("RGB", (320, 240))) for number in (1, 2)}
    return selection_page(asked, ("liver", "tool"), colours, cards, rows, 1, 768, ["b.png: cannot be read"], sheets)


@pytest.fixture(scope="module")
def status() -> str:
    """A project's status after one round."""
    point = {"x": 600, "y": 60, "low": 80, "high": 40, "title": "10 frames: 0.8", "frames": 10}
    facts = {
        "title": "liver",
        "kicker": "project",
        "images": "/data/theatre",
        "n_frames": 240,
        "of": "4 videos",
        "labelled": "10 frames, 0 refused; outline drawn 2,204 pixels",
        "classes": [{"name": "liver", "colour": "#c81e1e", "share": "80 %", "frames": 9, "dice": "0.8 (0.7 to 0.9)"}],
        "videos": [{"name": f"video{number}", "labelled": number, "frames": 60} for number in range(4)],
        "rounds": [{"number": 0, "what": "10 frames", "state": "all back", "outline": "2,204", "page": "000.html"}],
        "dice": "Dice 0.8.",
        "seconds": ["round 0: 7.0 s a window (40)"],
        "another": "That cannot be told yet.",
        "saving": "That cannot be known.",
        "next": NextStep("the model knows all labels", ["python -m alges_fast.project next liver -n 20"]),
        "curves": {
            "lines": [{"name": "head", "line": "600,60", "points": [point]}],
            "grid": [(220, "0"), (20, "1")],
        },
        "left_out": ["b.png: cannot be read"],
        "lost": ["round 1 is no longer in the folder"],
        "alike": "near-duplicates: 12 frames in 5 groups",
        "predictions": ["predictions of round 1: Dice 0.8"],
    }
    return render("alges_fast.project", "status", **facts)


@pytest.fixture(scope="module")
def report(tmp_path_factory: pytest.TempPathFactory) -> str:
    from report.fake_run import write_fake_run

    from alges_fast.report import write_report

    out = tmp_path_factory.mktemp("run") / "out"
    write_fake_run(out, strategies=("random", "alges-img"), seeds=2, rounds=3)
    write_report(out)
    return (out / "report.html").read_text(encoding="utf-8")


@pytest.fixture(params=["page", "report", "status"])
def path(request: pytest.FixtureRequest, tmp_path: Path) -> Path:
    """A file of each page."""
    file = tmp_path / "page.html"
    file.write_text(request.getfixturevalue(request.param), encoding="utf-8")
    return file


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_everything_has_contrast_a_name_and_a_place_in_the_tab_order(path: Path, scheme: str, tmp_path: Path) -> None:
    path.write_text(path.read_text(encoding="utf-8").replace("</body>", f"{ASK}</body>"), encoding="utf-8")
    dark = ["--blink-settings=preferredColorScheme=0"] if scheme == "dark" else []
    dom = chromium(tmp_path, *dark, "--virtual-time-budget=5000", "--dump-dom", path.as_uri())
    found = re.search(r"SAID(.*)DIAS", dom)
    assert found, dom[-2000:]
    said = json.loads(found[1].replace("&lt;", "<").replace("&gt;", ">").replace("&amp;", "&"))
    assert [said["faint"], said["unnamed"], said["unreachable"]] == [[], [], []]
    assert said["reached"] > 0
    assert (said["language"], said["headings"]) == ("en", 1)
    assert said["title"]


def test_it_prints(path: Path, tmp_path: Path) -> None:
    printed = tmp_path / "page.pdf"
    chromium(tmp_path, f"--print-to-pdf={printed}", path.as_uri())
    assert printed.read_bytes().startswith(b"%PDF")


@pytest.fixture(scope="module")
def window(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Browser]:
    if DRIVER is None:
        pytest.skip("no chromedriver on PATH")
    with browser(tmp_path_factory.mktemp("profile")) as opened:
        yield opened


STOPS = """
const wanted = "a[href], input, select, button, textarea, summary, [tabindex]";
const radios = new Set();
window.stops = [...document.querySelectorAll(wanted)].filter(element => {
  if (!element.checkVisibility() || element.tabIndex < 0) return false;
  return element.type !== "radio" || element.checked;
});
window.at = () => {
  const element = document.activeElement, style = getComputedStyle(element), box = element.getBoundingClientRect();
  const ringed = style.outlineStyle !== "none" && parseFloat(style.outlineWidth) > 0;
  const seen = box.bottom > 0 && box.top < innerHeight && box.right > 0 && box.left < innerWidth;
  return [stops.indexOf(element), ringed && seen, element.outerHTML.slice(0, 80)];
};
return stops.length;
"""


def test_the_keyboard_reaches_everything_in_order_and_leaves_again(path: Path, window: Browser) -> None:
    window.open(path.as_uri())
    n_stops = window.run(STOPS)
    visited = []
    while len(visited) < n_stops + 20:
        window.press(TAB)
        number, shown, element = window.run("return at()")
        if element.startswith("<body"):
            break
        assert shown, f"the focus is not to be seen on {element}"
        if number >= 0:  # a browser adds stops of its own: what scrolls
            visited.append(number)
    assert visited == list(range(n_stops))
    window.press(TAB, holding=SHIFT)
    assert window.run("return document.activeElement !== document.body")


@pytest.mark.parametrize("path", ["page"], indirect=True)
def test_a_round_is_looked_through_and_refused_by_keyboard_alone(window: Browser, path: Path) -> None:
    window.open(path.as_uri())

    def refused() -> Any:
        return window.run("return document.getElementById('refused').value")

    window.press(TAB, TAB, TAB, RIGHT)  # behind two sheets the views are one stop; arrows choose
    assert window.run("return document.querySelector('main').dataset.view") == "gradient"
    window.press(TAB)
    assert window.run("return document.activeElement.id") == "pick1"
    window.press(TAB, ENTER)  # the list of windows opens
    assert window.run("return document.querySelector('.cards details').open")
    window.press(TAB, SPACE)
    assert refused() == "video01/a.png#xywh=0,0,24,16\n"
    window.press(SPACE)
    assert refused() == ""
    window.press("k", "x", "3")
    assert refused() == "video01/a.png\n"
    assert window.run("return document.querySelector('main').dataset.view") == "prediction"
