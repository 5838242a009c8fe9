"""A headless Chromium, and what it makes of a page; shared by tests of reports and for taking screenshots."""

import json
import os
import shutil
from pathlib import Path

import pytest

PHONE, DESK = (375, 800), (1200, 900)
#: A4 within margins of 1 cm.
PAPER = (718, 1047)

#: Every piece of text on the page with its contrast: colours as computed, backgrounds of the ancestors laid over each
#: other. (WCAG 2.2, relative luminance and contrast ratio.)
CONTRASTS = """
const parse = css => { const p = css.match(/[\\d.]+/g).map(Number); return p.length < 4 ? [...p, 1] : p; };
const over = (top, below) => [0, 1, 2].map(i => top[i] * top[3] + below[i] * (1 - top[3]));
const light = c => { const [r, g, b] = c.map(v => v / 255)
    .map(v => v <= 0.04045 ? v / 12.92 : ((v + 0.055) / 1.055) ** 2.4);
    return 0.2126 * r + 0.7152 * g + 0.0722 * b; };
const found = [], walker = document.createTreeWalker(document.body, NodeFilter.SHOW_TEXT);
while (walker.nextNode()) {
  const element = walker.currentNode.parentElement, style = getComputedStyle(element);
  if (!walker.currentNode.data.trim() || !element.getClientRects().length) continue;
  const layers = [];
  for (let e = element; e; e = e.parentElement) layers.unshift(parse(getComputedStyle(e).backgroundColor));
  const back = layers.reduce((below, top) => over(top, below), [255, 255, 255]);
  const front = over(parse(style.color), back);
  const [low, high] = [light(back), light(front)].sort((a, b) => a - b);
  found.push([walker.currentNode.data.trim().slice(0, 40), (high + 0.05) / (low + 0.05)]);
}
return found;
"""


class Browser:
    """One window of Chromium, with everything it loads and complains about on record."""

    def __init__(self, folder: Path) -> None:
        from selenium import webdriver

        programs = [
            next(filter(None, map(shutil.which, names)), None)
            for names in (("chromium", "chromium-browser", "google-chrome"), ("chromedriver",))
        ]
        if None in programs:
            reason = "no Chromium with its driver is installed (Debian: apt-get install chromium chromium-driver)"
            (pytest.fail if os.environ.get("CI") else pytest.skip)(reason)
        options = webdriver.ChromeOptions()
        options.binary_location = programs[0]
        for flag in ("headless=new", "no-sandbox", "disable-gpu", "disable-dev-shm-usage", "no-first-run"):
            options.add_argument(f"--{flag}")
        options.add_argument("--disable-background-networking")
        options.add_argument(f"--user-data-dir={folder}")
        options.set_capability("goog:loggingPrefs", {"browser": "ALL", "performance": "ALL"})
        self.driver = webdriver.Chrome(options, webdriver.ChromeService(programs[1]))

    def open(self, path: Path, size: tuple[int, int] = DESK, *, dark: bool = False, printed: bool = False) -> None:
        """Show a page in a window of this size, or as it is printed on paper of this size."""
        width, height = size
        screen = {"width": width, "height": height, "deviceScaleFactor": 1, "mobile": width < 500}
        self.driver.execute_cdp_cmd("Emulation.setDeviceMetricsOverride", screen)
        scheme = {"name": "prefers-color-scheme", "value": "dark" if dark else "light"}
        media = "print" if printed else ""
        self.driver.execute_cdp_cmd("Emulation.setEmulatedMedia", {"media": media, "features": [scheme]})
        for log in ("browser", "performance"):
            self.driver.get_log(log)
        self.driver.get(path.resolve().as_uri())

    def run(self, script: str, *arguments):
        """What a script returns on the page."""
        return self.driver.execute_script(script, *arguments)

    def complaints(self) -> list[str]:
        """Everything on the console since the page was opened."""
        return [entry["message"] for entry in self.driver.get_log("browser")]

    def requests(self) -> list[str]:
        """Addresses that the page asked for since it was opened, itself among them; without data inside it."""
        events = [json.loads(entry["message"])["message"] for entry in self.driver.get_log("performance")]
        sent = [event["params"]["request"]["url"] for event in events if event["method"] == "Network.requestWillBeSent"]
        return [address for address in sent if not address.startswith("data:")]

    def tab(self):
        """Press the tabulator key."""
        from selenium.webdriver import ActionChains, Keys

        ActionChains(self.driver).send_keys(Keys.TAB).perform()

    def screenshot(self, path: Path) -> None:
        """Write the whole page as PNG."""
        import base64

        shot = self.driver.execute_cdp_cmd("Page.captureScreenshot", {"captureBeyondViewport": True})
        path.write_bytes(base64.b64decode(shot["data"]))

    def close(self) -> None:
        """End Chromium."""
        self.driver.quit()
