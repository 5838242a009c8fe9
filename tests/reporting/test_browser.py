"""Reports as a browser shows them: they load nothing, complain of nothing, fit a phone and can be read in the dark."""

import pytest

import fake_study
import mfh
from browser import CONTRASTS, DESK, PAPER, PHONE, Browser
from mfh.reporting import report
from mfh.tasks import ravdess
from mfh.tasks.ravdess.prepare import Features, prepare
from ravdess_clips import write_clips

EVIL = "<script>document.title='gone'</script><img src=x onerror=\"document.title='gone'\">"


@pytest.fixture(scope="module")
def browser(tmp_path_factory):
    window = Browser(tmp_path_factory.mktemp("profile"))
    yield window
    window.close()


def digits(folder):
    fake_study.write(folder)
    fake_study.write_saliencies(folder)
    fake_study.write_records(folder)
    return report(folder)


def gaussian(folder):
    return report(fake_study.write_gaussian(folder))


def ravdess_study(folder):
    """A study of generated clips: one data set for all seeds, eight classes, nothing known of the channels."""
    write_clips(folder / "raw", repetitions=2, statements=2, seconds=0.4, size=(36, 64))
    prepare(folder / "raw", folder / "data", features=Features(height=16, width=32, mfcc_frames=32), processes=0)
    common = {"data": folder / "data", "epochs": 2, "out": folder / "run"}
    arms = ["no-kd", "regular", "aligned", "general", "soft"]
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(ravdess.networks, "_WIDTHS", (64, 128))
        mfh.diagnose("ravdess", **common)
        mfh.study("ravdess", arms=arms, num_seeds=2, processes=1, **common)
    return report(folder / "run")


def hostile(folder):
    """A user's own words everywhere: in the folder's name, the task, layers, settings and the environment."""
    folder = folder / "<b>run"
    frame = fake_study.rows(3, ratios=(0.25, 0.5, 0.75))
    frame["layer"] = frame["layer"].where(frame["layer"].isna(), EVIL)
    facts = {"description": EVIL, "general": 1, "teacher_only": 2, "student_only": 1, "classes": [EVIL, "$x$"]}
    fake_study.write(folder, frame, task=EVIL, data=f"/data/{EVIL}", facts=facts, layers=[EVIL])
    fake_study.write_records(folder, frame.assign(layer=frame["layer"].where(frame["layer"].isna(), "1")))
    other = fake_study.write(folder.parent / EVIL.replace("/", "-"), fake_study.rows(2), task=EVIL)
    return report(folder, other)


MAKERS = (digits, gaussian, ravdess_study, hostile)


@pytest.fixture(scope="module", params=MAKERS, ids=lambda maker: maker.__name__)
def page(request, tmp_path_factory):
    return request.param(tmp_path_factory.mktemp("runs") / "run")


def test_nothing_is_loaded_and_nothing_complained_of(browser, page):
    browser.open(page)
    assert browser.requests() == [page.resolve().as_uri()]
    assert browser.complaints() == []
    assert browser.run("return document.title") == browser.run("return document.querySelector('h1').textContent")
    assert browser.run("return document.scripts.length") == 1


def test_all_pictures_are_there_and_described(browser, page):
    browser.open(page)
    for size, kind in ((DESK, "wide"), (PHONE, "narrow")):
        browser.open(page, size)
        pictures = browser.run(
            "return [...document.querySelectorAll('svg')].filter(e => e.getClientRects().length)"
            ".map(e => [e.classList[1], e.getBoundingClientRect().width, e.ariaLabel.trim().length])"
        )
        assert pictures
        for shown, width, described in pictures:
            assert shown == kind
            assert width > 250
            assert described > 20


def test_letters_in_pictures_keep_their_size_on_a_phone(browser, page):
    browser.open(page, PHONE)
    sizes = browser.run(
        "return [...document.querySelectorAll('svg.narrow text')].map(e =>"
        "[e.getScreenCTM(), parseFloat(getComputedStyle(e).fontSize)]).map(([m, size]) => size * Math.hypot(m.a, m.b))"
    )
    assert sizes
    assert min(sizes) > 7.5  # in the cells of large matrices; others are larger
    assert sorted(sizes)[len(sizes) // 2] > 10
    # No letters run out of the picture, so numbers beside the axes can be read without scrolling.
    overhang = browser.run(
        "return [...document.querySelectorAll('svg.narrow text')]"
        ".filter(e => e.getClientRects().length && e.getBoundingClientRect().right > innerWidth)"
        ".map(e => e.textContent)"
    )
    assert overhang == []


def test_the_gain_of_every_arm_is_seen_on_a_phone_without_scrolling(browser, tmp_path):
    browser.open(digits(tmp_path / "run"), PHONE)
    places = browser.run(
        "const t = [...document.querySelectorAll('table')].find(t => t.textContent.includes('Against no-kd'));"
        "return [...t.tBodies[0].rows].map(row => row.cells[2].getBoundingClientRect().right)"
    )
    assert len(places) == 8
    assert max(places) <= 375


def test_tables_are_sorted_by_their_headings(browser, tmp_path):
    browser.open(digits(tmp_path / "run"))
    table = "const t = [...document.querySelectorAll('table')].find(t => t.textContent.includes('Against no-kd'));"

    def rows(column):
        return browser.run(f"{table} return [...t.tBodies[0].rows].map(row => row.cells[{column}].textContent)")

    def press(column):
        browser.run(f"{table} t.tHead.rows[0].cells[{column}].querySelector('button').click()")
        return browser.run(f"{table} return t.tHead.rows[0].cells[{column}].ariaSort")

    before = rows(0)
    gains = [float(text.split()[0].replace("\u2212", "-")) for text in rows(2) if text]
    assert gains != sorted(gains)
    assert press(2) == "ascending"
    after = [text for text in rows(2) if text]
    assert [float(text.split()[0].replace("\u2212", "-")) for text in after] == sorted(gains)
    assert rows(0)[-1] == "no-kd"  # it has no gain
    assert press(2) == "descending"
    assert rows(2)[0] == after[-1]
    assert press(2) is None
    assert rows(0) == before
    assert press(0) == "ascending"
    assert rows(0) == sorted(before)


def test_the_configuration_unfolds(browser, tmp_path):
    path = digits(tmp_path / "run")
    height = "return document.querySelector('details').getBoundingClientRect().height"
    browser.open(path)
    assert browser.run(height) < 50
    browser.run("document.querySelector('summary').click()")
    assert browser.run(height) > 100
    browser.open(path, PAPER, printed=True)
    assert browser.run(height) > 100


@pytest.mark.parametrize("size", [PHONE, DESK], ids=["phone", "desk"])
def test_the_page_never_scrolls_sideways(browser, page, size):
    browser.open(page, size)
    assert browser.run("return innerWidth") == size[0]
    assert browser.run("const e = document.documentElement; return e.scrollWidth - e.clientWidth") == 0
    browser.run("scrollTo(100, 0)")
    assert browser.run("return scrollX") == 0


def test_nothing_runs_off_the_paper(browser, page):
    browser.open(page, PAPER, printed=True)
    assert browser.run("const e = document.documentElement; return e.scrollWidth - e.clientWidth") <= 0


@pytest.mark.parametrize("dark", [False, True], ids=["light", "dark"])
def test_all_text_can_be_read(browser, page, dark):
    browser.open(page, dark=dark)
    (background,) = {browser.run("return getComputedStyle(document.body).backgroundColor")}
    assert (background == "rgb(255, 255, 255)") is not dark
    contrasts = browser.run(CONTRASTS)
    assert len(contrasts) > 30
    assert [(text, round(ratio, 2)) for text, ratio in contrasts if ratio < 4.5] == []
    # Letters in figures have the ink of the page, or a colour that was lightened with it.
    inks = browser.run("return [...document.querySelectorAll('svg.wide text')].map(e => getComputedStyle(e).fill)")
    ink = browser.run("return getComputedStyle(document.body).color")
    assert inks.count(ink) > 0.8 * len(inks)


def test_the_keyboard_goes_down_the_page(browser, page):
    browser.open(page)
    stops = browser.run(
        "return [...document.querySelectorAll('a[href], [tabindex], button, summary')]"
        ".filter(e => !e.closest('details') || e.matches('summary')).length"
    )
    assert stops > 5
    browser.run("window.stops = []")
    for _ in range(stops):
        browser.tab()
        browser.run("stops.push(document.activeElement)")
    assert browser.run("return stops[0].className") == "skip"
    assert browser.run(
        "return stops.slice(1).every((e, i) => stops[i].compareDocumentPosition(e) & Node.DOCUMENT_POSITION_FOLLOWING)"
    )
    # Whoever lands on a region hears what it is, and sees where they are.
    assert browser.run("return stops.every(e => (e.textContent.trim() || e.ariaLabel).length > 1)")
    assert browser.run("return getComputedStyle(document.activeElement).outlineStyle") == "solid"


def test_links_lead_down_the_page(browser, page):
    browser.open(page)
    targets = browser.run(
        "return [...document.querySelectorAll('a[href^=\"#\"]')].map(a => !!document.querySelector(a.hash))"
    )
    assert targets
    assert all(targets)
