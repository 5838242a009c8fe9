"""The site in a browser: the search finds the right page first, pages fit a phone, nothing comes from the network."""

import functools
import os
import subprocess
import sys
import threading
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer

import pytest
from selenium.webdriver.support.ui import WebDriverWait

from browser import PHONE, Browser
from documented import ROOT

FIRST_RESULT = "return document.querySelector('.md-search-result__item > a')?.href"


class Quiet(SimpleHTTPRequestHandler):
    def log_message(self, *arguments):
        pass


@pytest.fixture(scope="module")
def site(tmp_path_factory):
    """The address of the site, built and served on this machine."""
    folder = tmp_path_factory.mktemp("site")
    command = [sys.executable, "-m", "mkdocs", "build", "--strict", "--quiet", "--site-dir", str(folder)]
    done = subprocess.run(
        command, cwd=ROOT, env=os.environ | {"NO_MKDOCS_2_WARNING": "1"}, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr
    with ThreadingHTTPServer(("127.0.0.1", 0), functools.partial(Quiet, directory=str(folder))) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        yield f"http://127.0.0.1:{server.server_port}"
        server.shutdown()


@pytest.fixture(scope="module")
def browser(tmp_path_factory):
    window = Browser(tmp_path_factory.mktemp("profile"))
    yield window
    window.close()


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


@pytest.mark.parametrize("page", ["", "arrays/", "api/training/", "how-it-works/"])
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
