"""The site: its links and names lead somewhere.

In a browser, the search finds the right page first, pages fit a phone, and nothing comes from the network.
"""

import functools
import json
import math
import os
import re
import runpy
import subprocess
import sys
import threading
from html.parser import HTMLParser
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from urllib.parse import unquote, urljoin, urlsplit

import pytest
from selenium.webdriver.support.ui import WebDriverWait

import mfh
from browser import CONTRASTS, PHONE, Browser
from documented import ROOT
from mfh.figures.venn import lens

FIRST_RESULT = "return document.querySelector('.md-search-result__item > a')?.href"


class Quiet(SimpleHTTPRequestHandler):
    def log_message(self, *arguments):
        pass


class Page(HTMLParser):
    """The links and anchors of a page."""

    def __init__(self, text):
        super().__init__()
        self.links, self.anchors = set(), set()
        self.feed(text)

    def handle_starttag(self, tag, attrs):
        found = dict(attrs)
        self.links |= {found[key] for key in ("href", "src") if found.get(key)}
        self.anchors |= {found[key] for key in ("id", "name") if found.get(key)}


def dead_links(folder: Path) -> list[str]:
    """Links of the pages in a folder that lead to no file or to no anchor of it, as "page: link"."""
    pages = {
        f"/{path.relative_to(folder).as_posix()}": Page(path.read_text("utf-8")) for path in folder.rglob("*.html")
    }
    dead = []
    for name, page in pages.items():
        for link in page.links:
            to = urlsplit(urljoin(name, link))
            path = unquote(to.path) + ("index.html" if to.path.endswith("/") else "")
            anchored = path not in pages or not to.fragment or unquote(to.fragment) in pages[path].anchors
            if not to.netloc and not to.scheme and not ((folder / path[1:]).is_file() and anchored):
                dead.append(f"{name}: {link}")
    return dead


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """The site, built as `make docs` builds it."""
    made = tmp_path_factory.mktemp("site")
    command = [sys.executable, "-m", "mkdocs", "build", "--strict", "--quiet", "--site-dir", str(made)]
    done = subprocess.run(
        command, cwd=ROOT, env=os.environ | {"NO_MKDOCS_2_WARNING": "1"}, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr
    return made


@pytest.fixture(scope="module")
def site(folder):
    """The address of the site, served on this machine."""
    with ThreadingHTTPServer(("127.0.0.1", 0), functools.partial(Quiet, directory=str(folder))) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        yield f"http://127.0.0.1:{server.server_port}"
        server.shutdown()


@pytest.fixture(scope="module")
def browser(tmp_path_factory):
    window = Browser(tmp_path_factory.mktemp("profile"))
    yield window
    window.close()


def test_no_link_of_the_site_is_dead(folder):
    assert dead_links(folder) == []


def test_dead_links_are_found(tmp_path):
    (tmp_path / "page").mkdir()
    (tmp_path / "index.html").write_text(
        '<p id="here"><a href="page/">1</a><a href="page/#no">2</a><a href="#here">3</a>'
    )
    (tmp_path / "page" / "index.html").write_text(
        '<a href="../#here">4</a><img src="../no.png"><a href="https://x.y/z">5'
    )
    assert sorted(dead_links(tmp_path)) == ["/index.html: page/#no", "/page/index.html: ../no.png"]


def test_every_report_is_on_the_site(folder):
    reports = [*ROOT.glob("benchmarks/reports/*.md"), *ROOT.glob("research/*/reports/*.md")]
    assert len(reports) > 25
    for report in (*reports, ROOT / "research/theory/derivation.md"):
        assert (folder / report.relative_to(ROOT).with_suffix("") / "index.html").is_file(), report


def test_no_title_says_the_name_twice(folder):
    titles = [re.search("<title>(.*?)</title>", page.read_text("utf-8"))[1] for page in folder.rglob("index.html")]
    assert len(titles) > 50
    assert not [title for title in titles if len(set(title.split(" - "))) != len(title.split(" - ")) or title == "mfh"]


def test_every_public_name_has_its_anchor(folder):
    index = Page((folder / "api/index.html").read_text("utf-8"))
    linked = {link.partition("#")[2]: link for link in index.links if "#mfh." in link}
    for name in set(mfh.__all__) - {"__version__"}:
        page, _, anchor = linked[f"mfh.{name}"].partition("#")
        assert anchor in Page((folder / "api" / page / "index.html").read_text("utf-8")).anchors, name


@pytest.mark.parametrize(
    ("query", "page"),
    [
        ("install", "install"),
        ("deploy", "deploy"),
        ("hugging face", "hugging-face"),
        ("missing labels", "unlabelled"),
        ("export", "deploy"),
        ("onnx", "deploy"),
        ("class imbalance", "class-imbalance"),
        ("gpu", "gpu"),
    ],
)
def test_the_search_finds_the_right_page_first(site, browser, query, page):
    browser.driver.get("about:blank")
    browser.driver.get(f"{site}/?q={query.replace(' ', '+')}")
    found = WebDriverWait(browser.driver, 60).until(lambda _: browser.run(FIRST_RESULT))
    assert found.removeprefix(f"{site}/").partition("/")[0] == page


@pytest.mark.parametrize("page", ["", "arrays/", "api/training/", "how-it-works/", "what-crosses/"])
def test_pages_fit_a_phone_and_load_nothing_from_elsewhere(site, browser, page):
    screen = {"width": PHONE[0], "height": PHONE[1], "deviceScaleFactor": 1, "mobile": True}
    browser.driver.execute_cdp_cmd("Emulation.setDeviceMetricsOverride", screen)
    browser.driver.get_log("performance")
    browser.driver.get(f"{site}/{page}")
    assert browser.run("return document.documentElement.scrollWidth") <= PHONE[0]
    requests = browser.requests()
    assert f"{site}/{page}" in requests
    assert all(address.startswith(f"{site}/") for address in requests if address.startswith("http"))


def test_formulas_are_formulas(site, browser):
    browser.driver.get(f"{site}/how-it-works/")
    assert browser.run("return document.querySelectorAll('math').length") > 20
    assert "$`" not in browser.run("return document.body.innerText")


#: Students on the page, and their names in the theory.
KINDS = {"no-kd": "no-kd", "plain": "plain", "focused": "soft"}
#: Moves the sliders of "What crosses?" to places; returns the numbers beside them, the accuracies, the circles as
#: (centre, radius), and the letters.
MOVE = """
const page = document.getElementById('what-crosses');
page.querySelectorAll('input').forEach((slider, i) => { slider.value = arguments[0][i]; });
page.dispatchEvent(new Event('input'));
return [
  [...page.querySelectorAll('output')].map(e => Number(e.textContent)), page.dataset.accuracies,
  [...page.querySelectorAll('circle')].map(e => [e.cx.baseVal.value, e.r.baseVal.value]),
  page.querySelector('.reading').textContent, page.querySelector('.bars').textContent,
  page.querySelector('.result').hidden,
];
"""


def open_sliders(site: str, browser: Browser) -> None:
    """Open the page of sliders, and wait until its script has made them."""
    browser.driver.get(f"{site}/what-crosses/")
    made = "return Boolean(document.querySelector('#what-crosses .reading')?.textContent)"
    WebDriverWait(browser.driver, 60).until(lambda _: browser.run(made))


@pytest.mark.parametrize(
    ("places", "values"),
    [
        ((8, 8, 0, 1, 0), (8, 8, 0, 100, 0)),
        ((8, 8, 3, 2, 3), (8, 8, 3, 150, 700)),
        ((0, 8, 8, 0, 0), (0, 8, 8, 75, 0)),
        ((16, 0, 0, 6, 6), (16, 0, 0, 1000, 6300)),
        ((1, 16, 8, 3, 2), (1, 16, 8, 200, 300)),
        ((5, 0, 4, 1, 4), (5, 0, 4, 100, 1500)),
    ],
)
def test_the_sliders_show_what_the_theory_predicts(site, browser, monkeypatch, places, values):
    monkeypatch.setattr(sys, "path", list(sys.path))  # which the script adds to
    theory = runpy.run_path(str(ROOT / "research/theory/gain.py"))
    open_sliders(site, browser)
    beside, accuracies, circles, reading, bars, hidden = browser.run(MOVE, places)
    assert tuple(beside) == values
    assert not hidden
    general, teacher_only, student_only, labelled, unlabelled = values
    world = theory["World"]((1.0,) * general + (0.0,) * teacher_only, student_only, labelled, unlabelled)
    expected = theory["accuracies"](world)
    found = json.loads(accuracies)
    assert found == pytest.approx({kind: expected[old] for kind, old in KINDS.items()}, abs=1e-9)
    gain = f"{abs(found['plain'] - found['no-kd']):.1f}"
    assert f"{gain})" in bars
    assert f"{gain} points from the plain teacher" in reading
    # Areas are to scale: circles and what they share.
    (teacher, radius), (student, other) = circles
    area = math.pi * radius**2 / (general + teacher_only)
    assert math.pi * other**2 == pytest.approx(area * (general + student_only))
    shared = (
        lens(radius, other, student - teacher) if abs(radius - other) < student - teacher < radius + other else None
    )
    expected_area = area * general
    if shared is None:  # one circle lies in the other, or they do not meet
        assert expected_area in (0, pytest.approx(math.pi * min(radius, other) ** 2))
    else:
        assert shared == pytest.approx(expected_area, rel=1e-6)


def test_sliders_without_any_factor_say_so_and_go_on(site, browser):
    browser.driver.get_log("browser")
    open_sliders(site, browser)
    *_, reading, _, hidden = browser.run(MOVE, (0, 0, 0, 1, 1))
    assert hidden
    assert "No factor decides the label" in reading
    *_, circles, reading, _, hidden = browser.run(MOVE, (0, 4, 0, 1, 1))  # the student sees nothing
    assert not hidden
    assert len(circles) == 1
    assert "Little of what this teacher knows can cross" in reading
    assert browser.complaints() == []


@pytest.mark.parametrize(
    ("places", "said"),
    [
        ((8, 8, 0, 0, 0), " more from the focused one. Pairs are few: removing what cannot cross pays."),
        ((8, 0, 1, 0, 0), " more from the focused one. Pairs are few: removing channels that only carry noise pays."),
        (
            (12, 0, 8, 3, 0),
            " points from the plain teacher. The focus costs 1.2. Removing channels loses more here",
        ),
        ((4, 0, 8, 4, 0), " points from the plain teacher. The focus costs 1.4. This teacher costs accuracy"),
    ],
)
def test_the_reading_fits_what_the_focus_removes(site, browser, places, said):
    open_sliders(site, browser)
    *_, reading, _, _ = browser.run(MOVE, places)
    assert said in reading


@pytest.mark.parametrize("scheme", ["default", "slate"])
def test_letters_at_the_sliders_can_be_read(site, browser, scheme):
    open_sliders(site, browser)
    browser.run(f"document.body.dataset.mdColorScheme = '{scheme}'")
    inner = CONTRASTS.replace("document.body, NodeFilter", "document.getElementById('what-crosses'), NodeFilter")
    contrasts = browser.run(inner)
    assert len(contrasts) > 15
    assert [(text, round(ratio, 2)) for text, ratio in contrasts if ratio < 4.5] == []
    fills = browser.run(
        "return [...document.querySelectorAll('#what-crosses text')].map(e => getComputedStyle(e).fill)"
    )
    assert set(fills) == {browser.run("return getComputedStyle(document.getElementById('what-crosses')).color")}
