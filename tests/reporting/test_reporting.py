import base64
import hashlib
import math
import re
from html.parser import HTMLParser
from itertools import pairwise
from urllib.parse import unquote

import numpy as np
import pytest

import fake_study
from mfh.errors import InputError
from mfh.figures.style import METHOD_COLOURS, PALETTE, ROLE_COLOURS, ROLE_INKS, new_figure
from mfh.figures.venn import centre_distance, circle_areas, lens
from mfh.gaussian.run import read_frames
from mfh.reporting import report
from mfh.reporting import summary as sentences
from mfh.reporting.diagnosis import _as_measured
from mfh.reporting.gaussian import gaussian_tables, sweep_figure
from mfh.reporting.inline import lighter
from mfh.reporting.legend import definition
from mfh.reporting.markdown import write_markdown
from mfh.reporting.page import Command, Content, Folded, Picture, Section, Table, write_page
from mfh.reporting.pictures import estimated_venn_picture, gains_picture, teachers_picture, venn_picture
from mfh.reporting.study import _duration, _flatten
from mfh.reporting.summary import questions_table
from mfh.studies.criteria import Measure, Shares
from mfh.studies.folder import MOST_CLASSES, Run
from mfh.studies.grid import ARMS, CONTROLS, FOCUSES, METHODS, Cell
from mfh.studies.stats import Repeats, corrected_p_values, paired_comparison
from mfh.studies.summary import interval_in_words, p_in_words, summarise
from mfh.venn import ModalityVenn


def summary_table(frame, **how):
    return sentences.arms_table(summarise(frame, **how))


def finding(frame, **how):
    return sentences.finding(summarise(frame, **how))


VOID = {"meta", "link", "img", "br", "hr"}


class Page(HTMLParser):
    """What a browser would make of a page: a list of elements, text, and whether tags nest."""

    def __init__(self, path):
        super().__init__()
        self.elements, self.words, self.open, self.scripts, self.hovers = [], [], [], [], []
        self.feed(path.read_text(encoding="utf-8"))
        assert not self.open

    def handle_starttag(self, tag, attributes):
        self.elements.append((tag, dict(attributes)))
        if tag not in VOID:
            self.open.append(tag)
        if tag not in ("a", "span"):
            self.words.append(" ")

    def handle_endtag(self, tag):
        assert self.open.pop() == tag

    def handle_data(self, data):
        if not {"style", "script", "svg"} & set(self.open):
            self.words.append(data)
        if "script" in self.open:
            self.scripts.append(data)
        if self.open[-2:] == ["g", "title"]:
            self.hovers.append(data)

    @property
    def text(self):
        return " ".join("".join(self.words).split()).replace("\u00a0", " ")

    def all(self, tag):
        return [attributes for name, attributes in self.elements if name == tag]

    @property
    def pictures(self):
        """Alternative text of every picture, as a wide screen shows it."""
        return [svg["aria-label"] for svg in self.all("svg") if svg["class"] != "chart narrow"]


def check_page(path):
    """Self-contained, accessible, and nothing that runs but the page's own script."""
    page = Page(path)
    [policy] = [meta["content"] for meta in page.all("meta") if "http-equiv" in meta]
    [script] = page.scripts
    digest = base64.b64encode(hashlib.sha256(script.encode()).digest()).decode()
    assert policy == f"default-src 'none'; style-src 'unsafe-inline'; img-src data:; script-src 'sha256-{digest}'"
    assert len(page.all("script")) == 1
    for tag, attributes in page.elements:
        assert tag not in {"iframe", "object", "embed", "form", "base", "foreignObject", "image", "metadata"}
        for name, value in attributes.items():
            assert not name.startswith("on")
            if name in {"src", "action", "srcset", "poster", "data"} or (name == "href" and tag != "a"):
                assert value.startswith(("data:", "#"))
            if name == "href" and tag == "a" and not value.startswith("#"):
                assert (path.parent / unquote(value)).is_file()  # a file of the run
            assert "url(" not in value or re.fullmatch(r"url\(#[\w.-]+\)", value)
    style = path.read_text(encoding="utf-8").split("<style>")[1].split("</style>")[0]
    assert len(page.all("style")) == 1
    assert "url(" not in style
    assert "@import" not in style
    assert "prefers-color-scheme: dark" in style
    identifiers = [attributes["id"] for _, attributes in page.elements if "id" in attributes]
    assert len(identifiers) == len(set(identifiers))
    for _, attributes in page.elements:
        target = attributes.get("href", "")
        assert not target.startswith("#") or target[1:] in identifiers
        assert attributes.get("aria-labelledby", "content") in identifiers
    assert all(svg["aria-label"].strip() and svg["role"] == "img" for svg in page.all("svg"))
    assert page.all("html") == [{"lang": "en"}]
    levels = [int(tag[1]) for tag, _ in page.elements if tag in ("h1", "h2", "h3", "h4")]
    assert levels.count(1) == 1
    assert levels[0] == 1
    assert all(deeper <= level + 1 for level, deeper in pairwise(levels))
    return page


def picture(name="a picture", label="x"):
    def draw():
        figure, axes = new_figure(3, 2)
        axes.set_xlabel(label)
        return figure

    return Picture(draw, name, "What to see.", "An empty pair of axes.")


def some_content():
    return Content("Title", "What was studied.", ["It gains 2 %.", "So much more."], some_sections())


def some_sections():
    table = Table(["Arm", "Gain"], [["soft", "+2.1 (1.2 to 3.0)"], ["no-kd", ""]], "Gains.")
    return [Section("One", ["Words.", table, picture()]), Section("Part", [picture()], 3), Section("Two")]


def test_page(tmp_path):
    path = write_page(tmp_path / "new", some_content())
    assert path == tmp_path / "new" / "report.html"
    page = check_page(path)
    assert "It gains 2 %." in page.text
    files = sorted(file.name for file in (tmp_path / "new" / "figures").iterdir())
    assert files == ["a-picture-2.png", "a-picture-2.svg", "a-picture.png", "a-picture.svg"]
    assert "What was studied. It gains 2 %. So much more." in page.text
    assert len(page.pictures) == 2
    assert len(page.all("svg")) == 4  # wide and narrow
    again = path.read_bytes()
    assert write_page(tmp_path / "new", some_content()).read_bytes() == again


def test_users_text_is_inert(tmp_path):
    evil = "<script>alert(1)</script>\"'><img src=x onerror=alert(1)>{{ 7 * 7 }}"
    shown = picture(f"../../{evil}", evil)
    shown = Picture(shown.draw, shown.name, evil, evil)
    blocks = [evil, Table([evil], [[evil]] * 3, evil), shown, Command(evil), Folded(evil, [evil])]
    page = check_page(write_page(tmp_path / "run", Content(evil, evil, [evil, evil], [Section(evil, blocks)])))
    assert page.text.count("<script>alert(1)</script>") == 16
    assert "{{ 7 * 7 }}" in page.text
    assert page.pictures == [evil]
    # No name leads out of the folder.
    assert {file.parent for file in tmp_path.rglob("*.svg")} == {tmp_path / "run" / "figures"}


def test_numbers_are_set_flush_right():
    rows = [
        ["a1", "\u22122.0 (\u22123.1 to \u22120.9)", "70.4 \u00b1 1.0", "8 seeds", ""],
        ["b", "", "< 0.001", "5", ""],
    ]
    assert Table(["", "", "", "", ""], rows).alignments == ["text", "number", "number", "text", "text"]


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    folder = fake_study.write(tmp_path_factory.mktemp("runs") / "digits")
    fake_study.write_saliencies(folder)
    fake_study.write_records(folder)
    return folder


@pytest.fixture(scope="module")
def reported(run):
    return report(run)


def test_report_of_a_study(run, reported):
    path = reported
    assert path == run / "report.html"
    page = check_page(path)
    assert path.stat().st_size < 1_000_000
    for line in finding(Run(run).results).splitlines():
        assert line in page.text
    names = {file.stem for file in (run / "figures").glob("*.svg")}
    assert names == {
        "gains",
        "teacher-and-student",
        "venn",
        "saliency-distance",
        "saliency-probe",
        "confusion",
        "classes",
        "training",
    }
    for words in (
        "mfh demo --out runs/demo",
        "2 min 51 s",
        "torch 2.13.0",
        "best possible accuracy on the teacher's modality is 100.0 %",
        definition("no-kd"),
        definition("soft"),
        "results.csv: all measurements",
        "alpha = 0.5, beta = 0, gamma = 0.5",
        "0.5 is chance",
        "Every seed draws its own data",
    ):
        assert words in page.text
    # 512 channels, every second block of four general; a mask at ratio one half keeps half of them.
    [alt] = [alt for alt in page.pictures if "by score distance" in alt]
    assert "256 channels are kept" in alt


def test_what_lies_on_top_of_a_report(run, reported):
    """The task, the finding line by line, the Venn diagram and every arm come before the first result."""
    page = Page(reported)
    parts = [
        "is their sum large?",
        "Distillation helps here: soft",
        "Areas are to scale.",
        "Gain over no-kd. Small dots",
    ]
    places = [page.text.index(part) for part in parts]
    assert places == sorted(places)
    for arm in fake_study.GAINS:
        assert places[2] < page.text.index(f"{arm} {definition(arm)}") < places[3]


def test_every_arm_and_method_is_defined():
    own = definition("somebody's")
    names = [*ARMS, *CONTROLS, *(name for name in METHODS if name != "kd")]
    words = [definition(name) for name in names]
    assert own not in words
    assert len(set(words)) == len(words)
    for focus in FOCUSES:
        assert definition(f"rkd+{focus}").startswith(definition("rkd") + "; ")


def test_figures_tell_their_values_and_take_the_colours_of_the_page(reported):
    page = Page(reported)
    assert "soft, seed 0: " in " ".join(page.hovers)
    assert any(text.startswith("no-kd: class 0, predicted class 1: ") for text in page.hovers)
    svgs = re.findall(r"<svg .*?</svg>", reported.read_text(encoding="utf-8"), re.DOTALL)
    assert len(svgs) == 2 * 8
    for svg in svgs:
        assert "currentColor" in svg
        assert not re.search(r"(fill|stroke): #", svg)
    style = reported.read_text(encoding="utf-8").split("<style>")[1].split("</style>")[0]
    used = set(re.findall(r"var\((--c\w+)\)", "".join(svgs)))
    for name in used:
        light, dark = re.findall(rf"{name}: (#\w+);", style)
        assert light == f"#{name[3:]}"
        assert dark == lighter(name[3:])


def test_a_colour_for_a_dark_page_stands_out_from_it():
    for colour in (*PALETTE.values(), *METHOD_COLOURS.values(), *ROLE_COLOURS.values(), *ROLE_INKS.values()):
        assert luminance(lighter(colour[1:])) / luminance("#14171b") >= 4.5


def luminance(colour):
    channels = np.array([int(colour[place : place + 2], 16) / 255 for place in (1, 3, 5)])
    linear = np.where(channels <= 0.04045, channels / 12.92, ((channels + 0.055) / 1.055) ** 2.4)
    return linear @ [0.2126, 0.7152, 0.0722] + 0.05


def test_links_lead_to_the_data_from_another_folder_too(run, tmp_path):
    page = check_page(report(run, out=tmp_path / "away" / "below"))
    [link] = [link["href"] for link in page.all("a") if link["href"].endswith("results.csv")]
    assert (tmp_path / "away" / "below" / unquote(link)).resolve() == (run / "results.csv").resolve()


def test_class_by_class(run, reported):
    page = Page(reported)
    [alt] = [alt for alt in page.pictures if "over no-kd by class" in alt]
    cells = {"no-kd": Cell("no-kd"), "soft-probe-flatten": Cell("soft", "probe", layer="flatten")}
    counts = {arm: [Run(run).seed(seed).read_counts(cells[arm], "test") for seed in range(8)] for arm in cells}
    right = {arm: [100 * np.diag(m)[0] / m[0].sum() for m in matrices] for arm, matrices in counts.items()}
    gain = paired_comparison(right["soft-probe-flatten"], right["no-kd"])
    assert f"class 0 {interval_in_words(gain.mean_difference, gain.low, gain.high, sign='+')}" in alt


def test_many_classes_show_the_extremes(tmp_path):
    frame = fake_study.rows(2, gains={"no-kd": 0.0, "regular": 0.02})
    folder = fake_study.write(tmp_path / "run", frame)
    fake_study.write_records(folder, frame, num_classes=MOST_CLASSES + 5)
    page = check_page(report(folder))
    assert f"Of {MOST_CLASSES + 5} classes, those that gain most and least" in page.text
    assert not (folder / "figures" / "confusion.svg").exists()


def test_training_curves_are_means_over_seeds(run, reported):
    page = Page(reported)
    [alt] = [alt for alt in page.pictures if "label loss by epoch" in alt]
    curves = [Run(run).seed(seed).read_history("teacher")["teacher_val_accuracy"] for seed in range(8)]
    best, last = 100 * np.mean(curves, 0).max(), 100 * np.mean(curves, 0)[-1]
    assert f"teacher pretrained: accuracy {best:.1f} at best, {last:.1f} in the last epoch" in alt


def test_as_markdown_with_figures_for_paper(run, tmp_path):
    path = report(run, out=tmp_path / "paper", format="md", figures=("pdf",), style="paper")
    assert path.name == "report.md"
    text = path.read_text(encoding="utf-8")
    shown = re.findall(r"^!\[.+\]\((.+)\)$", text, re.MULTILINE)
    assert len(shown) == 8
    for place in shown:
        assert (tmp_path / "paper" / place).read_bytes().startswith(b"%PDF")
    assert {file.suffix for file in (tmp_path / "paper" / "figures").iterdir()} == {".pdf"}
    assert not (tmp_path / "paper" / "report.html").exists()
    assert "\n| no-kd | 6" in text


def test_markdown_is_inert(tmp_path):
    evil = "<script>alert(1)</script> | [x](http://x) ![x](http://x) `x` *x*\n\n# x"
    blocks = [evil, Table([evil], [[evil]], evil), Folded(evil, [evil])]
    text = write_markdown(tmp_path, Content(evil, evil, [evil, evil], [Section(evil, blocks)])).read_text()
    assert "<" not in text
    assert not re.search(r"(?<!\\)[\[\]`]", text)
    assert [line.split()[0] for line in text.splitlines() if line.startswith("#")] == ["#", "##"]


def test_a_study_of_a_thousand_cells_stays_small(tmp_path):
    frame = fake_study.rows(5, ratios=tuple(step / 67 for step in range(1, 67)))
    assert len(frame[(frame["metric"] == "accuracy") & (frame["split"] == "test")]) >= 1000
    folder = fake_study.write(tmp_path / "run", frame)
    assert report(folder).stat().st_size < 5_000_000


def test_reports_are_reproducible(run, tmp_path):
    assert report(run, out=tmp_path / "a").read_bytes() == report(run, out=tmp_path / "b").read_bytes()


def test_several_runs_on_one_page(run, tmp_path):
    sweep = fake_study.rows(3, ratios=(0.0, 0.25, 0.5, 0.75, 0.9), seed=1)
    other = fake_study.write(tmp_path / "<b>other", sweep, data_redrawn=False, facts={})
    page = check_page(report(run, other, out=tmp_path / "both"))
    assert "2 runs compared" in page.text
    assert "training randomness only" in page.text
    assert "<b>other" in page.text
    names = {file.stem for file in (tmp_path / "both" / "figures").glob("*.svg")}
    assert {"gains", "gains-2", "ratio-sweep"} <= names


def test_comparison_of_siblings_stands_beside_them(tmp_path):
    one, two = (fake_study.write(tmp_path / name, fake_study.rows(2)) for name in "ab")
    assert report(one, two) == tmp_path / "report.html"


def test_gaussian_run(tmp_path):
    page = check_page(report(fake_study.write_gaussian(tmp_path / "gauss")))
    assert "Gaussian" in page.text
    assert "Students: test accuracy in percent" in page.text
    assert len(page.pictures) == 3


def test_gaussian_tables_fit_80_columns_and_accuracies_100_percent(tmp_path):
    frames = read_frames(Run(fake_study.write_gaussian(tmp_path / "gauss")))
    for name, frame in frames.items():
        tables = gaussian_tables(frame)
        assert len(tables) == (2 if name == "modify-gamma" else 1)
        for table in tables:
            for row in (table.columns, *table.rows):
                assert sum(len(cell) + 2 for cell in row) <= 80
    wild = frames["vary-alpha"].copy()
    wild["accuracy"] = [1.0 + 98 * (seed % 2) for seed in wild["seed"]]
    low, high = sweep_figure(wild).subfigs[1].axes[0].get_ylim()
    assert (low, high) == (-3, 103)


def test_table_and_finding_are_the_paired_comparisons(run):
    frame = Run(run).results
    test = frame[(frame["metric"] == "accuracy") & (frame["split"] == "test")]
    wide = 100 * test.pivot(index="seed", columns="arm", values="value")
    table = summary_table(frame)
    by_arm = {row[0]: row for row in table.rows}
    assert list(by_arm) == list(fake_study.GAINS)
    soft = paired_comparison(wide["soft"], wide["no-kd"])
    assert by_arm["soft"][1] == f"{wide['soft'].mean():.1f}"
    assert by_arm["soft"][2] == f"+{soft.mean_difference:.1f} (+{soft.low:.1f} to +{soft.high:.1f})"
    assert by_arm["no-kd"][2:] == ["", "", "", ""]
    masking = paired_comparison(wide["general"], wide["aligned"])
    assert by_arm["general"][4].startswith(f"+{masking.mean_difference:.1f} (")
    assert by_arm["regular"][4] == ""
    gains = wide[list(by_arm)[1:]].sub(wide["no-kd"], axis=0)
    corrected = dict(zip(gains.columns, corrected_p_values(gains.to_numpy()), strict=True))
    assert [v.corrected_p for v in summarise(frame).variants if v.arm == "soft"] == [pytest.approx(corrected["soft"])]
    sentence = finding(frame)
    masked = paired_comparison(wide["soft"], wide["regular"])
    interval = f"+{masked.low:.1f} to +{masked.high:.1f}"
    assert f"soft: +{masked.mean_difference:.1f} points over regular ({interval})" in sentence
    assert f"soft: +{soft.mean_difference:.1f} points over no-kd" in sentence
    assert sentence.startswith("Distillation helps here: soft gains over no-kd.\n")
    # A frame in memory, with its gaps as None or as empty text, says the same.
    assert finding(fake_study.rows()) == sentence
    assert finding(fake_study.rows().astype({"ratio": object}).fillna("")) == sentence


def test_nothing_gained_is_said_plainly():
    frame = fake_study.rows(10, gains=dict.fromkeys(("no-kd", "regular", "soft"), 0.0), seed=5)
    assert finding(frame).startswith("Distillation is not shown to help on the test split.\n")
    assert "no difference shown)" in finding(frame)
    worse = fake_study.rows(10, gains={"no-kd": 0.0, "regular": -0.05})
    assert "regular: \u22125" in finding(worse) or "regular: \u22124" in finding(worse)
    assert finding(worse).startswith("Distillation is not shown to help on the test split.\n")


def test_best_arm_is_chosen_by_validation_not_by_test():
    frame = fake_study.rows(6)
    lucky = (frame["arm"] == "random") & (frame["split"] == "test") & (frame["metric"] == "accuracy")
    frame.loc[lucky, "value"] += 0.2
    best = summarise(frame).chosen()
    assert best.arm == "soft"
    assert max(summarise(frame).variants, key=lambda variant: variant.student.mean()).arm == "random"


def test_corrections_are_named():
    gains = {"no-kd": 0.0, "regular": 0.03, "soft": 0.06}
    for num_seeds in (5, 10):
        frame = fake_study.rows(num_seeds, gains)
        [soft] = [variant for variant in summarise(frame).variants if variant.arm == "soft"]
        assert soft.corrected_p < 0.05
        assert f"p {p_in_words(soft.corrected_p)} after correction for 2 comparisons" in finding(frame)
    one = {"no-kd": 0.0, "regular": 0.06}
    assert "correct" not in finding(fake_study.rows(5, one))
    unclear = fake_study.rows(3, gains={"no-kd": 0.0, **{arm: 0.04 for arm in fake_study.GAINS if arm != "no-kd"}})
    assert summarise(unclear).chosen().gain.outcome == "gains"
    assert "taken alone, but not after correction" in finding(unclear)


def test_finding_and_table_settle_a_question_by_the_corrected_p_alone():
    gains = {"no-kd": 0.0, **{arm: 0.04 for arm in fake_study.GAINS if arm != "no-kd"}, "aligned": 0.08}
    unclear = fake_study.rows(3, gains)
    summary = summarise(unclear)
    [regular] = [variant for variant in summary.variants if variant.arm == "regular"]
    assert regular.gain.low > 0
    assert regular.corrected_p > 0.05
    assert (regular.taken_alone, regular.gains) == (True, False)
    words = f"taken alone, p {p_in_words(regular.corrected_p)} after correction for 7 comparisons"
    assert words in next(line for line in finding(unclear).splitlines() if line.startswith("Ordinary distillation"))
    answers = {row[0]: row[2:] for row in questions_table(summary).rows}
    answer, settling = answers["Does ordinary distillation help?"]
    assert (answer[:6], answer[-len(words) :], settling) == ("gains ", words, "more seeds")
    resplit = questions_table(summarise(unclear, repeats=Repeats("resplit", 10_000, 10, 10)))
    assert [row[3] for row in resplit.rows if row[0] == "Does ordinary distillation help?"] == ["more data"]
    clear = summarise(fake_study.rows(8, {"no-kd": 0.0, "regular": 0.06}))
    [settled] = questions_table(clear).rows
    assert settled[2:] == [clear.describe(clear.chosen("regular").gain), "settled"]


def test_the_headline_names_another_arm_that_is_shown_to_gain():
    frame = fake_study.rows(8, {"no-kd": 0.0, "regular": 0.06, "soft": 0.0})
    frame.loc[(frame["arm"] == "soft") & (frame["split"] == "val") & (frame["metric"] == "accuracy"), "value"] += 0.2
    headline = "soft, the best arm by validation, is not shown to gain over no-kd, but regular is."
    assert finding(frame).splitlines()[0] == headline


def test_a_control_that_gains_as_much_takes_the_headline():
    frame = fake_study.rows(8, {"no-kd": 0.0, "regular": 0.05, "longer": 0.05})
    assert finding(frame).splitlines()[0] == "regular gains over no-kd, but the control gains as much (longer)."
    frame = fake_study.rows(8, {"no-kd": 0.0, "regular": 0.09, "longer": 0.02})
    headline, line, *_ = finding(frame).splitlines()
    assert headline == "Distillation helps here: regular gains over no-kd and over the best other control."
    assert "points over longer, the best other control (" in line


def test_a_linear_model_that_is_better_is_named():
    better = finding(fake_study.rows(8, {"no-kd": 0.0, "regular": 0.03, "linear": 0.2}))
    [line] = [line for line in better.splitlines() if line.startswith("The linear model")]
    assert "better than regular (" in line
    assert line.endswith("%): begin there.")
    for gain in (-0.2, 0.05):
        assert "linear" not in finding(fake_study.rows(8, {"no-kd": 0.0, "regular": 0.15, "linear": gain}))


def test_the_forecast_stands_beside_what_it_is_a_forecast_of():
    longer = summarise(fake_study.rows(8, {"no-kd": 0.0, "regular": 0.09, "longer": 0.02}))
    over = longer.compare(longer.chosen("regular").student, longer.control.student)
    assert _as_measured(longer) == [f"As measured, regular against longer: {longer.describe(over)}."]
    [alone] = _as_measured(summarise(fake_study.rows(8, {"no-kd": 0.0, "regular": 0.09})))
    assert "regular against no-kd: gains" in alone
    assert _as_measured(summarise(fake_study.rows(8, {"no-kd": 0.0, "soft": 0.09}))) == []


def test_one_seed_proves_nothing():
    frame = fake_study.rows(1)
    assert "one seed shows nothing" in finding(frame)
    assert math.isnan(summarise(frame).variants[1].gain.low)


def test_two_seeds_that_show_nothing_have_no_interval():
    frame = fake_study.rows(2, {"no-kd": 0.0, "regular": 0.05}, spread=0.0)
    summary = summarise(frame)
    assert summary.difference(summary.chosen().gain) == "+5.0 (too few seeds for an interval)"
    assert "+5.0 points over no-kd (too few seeds for an interval, no difference shown)" in finding(frame)
    assert "no difference shown (+5.0 points; 2 seeds are too few for an interval)" in str(
        questions_table(summary).rows
    )


def test_training_randomness_is_named():
    assert "training randomness only" in finding(fake_study.rows(5), repeats=Repeats("fixed"))
    assert "training randomness only" in summary_table(fake_study.rows(5), repeats=Repeats("fixed")).caption
    assert "training randomness" not in finding(fake_study.rows(5))


def test_re_split_data_are_named_and_intervals_widened(tmp_path):
    frame, sizes = fake_study.rows(8), {"num_train": 600, "num_val": 100, "num_test": 500, "unit": "pairs"}
    run = fake_study.write(tmp_path / "run", frame, data_redrawn=False, resplit=sizes)
    summary = Run(run).summary
    assert summary.repeats == Repeats("resplit", **sizes)
    for variant, plain in zip(summary.variants, summarise(frame).variants, strict=True):
        for one, other in ((variant.gain, plain.gain), (variant.masking, plain.masking)):
            if one is not None:
                assert one.standard_error == pytest.approx(other.standard_error * math.sqrt(1 + 8 * 500 / 600))
        if variant.gain is not None:
            assert variant.corrected_p >= variant.gain.p_value > plain.gain.p_value
    assert summary.compare(summary.variants[1].student, summary.variants[0].student) == summary.variants[1].gain
    words = "every seed splits one data set anew, and the intervals are corrected for the samples that splits share"
    assert words in sentences.finding(summary)
    assert words in sentences.arms_table(summary).caption
    page = check_page(report(run))
    assert "with 600 training and 500 test pairs" in page.text
    assert "cover new data" not in page.text
    # A study that has not read the test split is corrected for the validation split.
    unread = frame[frame["split"] != "test"]
    assert summarise(unread, repeats=summary.repeats).test_to_train == 100 / 600


def test_unfinished_studies_use_the_seeds_both_sides_have():
    frame = fake_study.rows(6)
    frame = frame[~((frame["arm"] == "soft") & (frame["seed"] > 2))]
    summary = summarise(frame)
    [soft] = [variant for variant in summary.variants if variant.arm == "soft"]
    assert soft.gain.num_pairs == 3
    assert summary.num_shared == 3
    gains = [variant.corrected_p for variant in summary.variants[1:]]
    assert all(0 < p_value <= 1 for p_value in gains)
    early = frame[~((frame["arm"] == "soft") & (frame["seed"] > 0))]
    assert {variant.corrected_p for variant in summarise(early).variants} == {None}
    assert "3 to 6 seeds" in summary_table(frame).caption


def test_arms_without_a_baseline():
    assert "cannot tell whether" in finding(fake_study.rows(3, {"regular": 0.0, "soft": 0.0}))
    assert "cannot tell whether" in finding(fake_study.rows(3, {"no-kd": 0.0}))
    lonely = summarise(fake_study.rows(3, {"no-kd": 0.0, "general": 0.02}))
    assert [variant.masking for variant in lonely.variants] == [None, None]


def test_validation_stands_in_until_the_test_split_is_read():
    frame = fake_study.rows(4)
    assert "validation split" in finding(frame[frame["split"] != "test"])


def test_variants_are_told_apart():
    frame = fake_study.rows(3, ratios=(0.25, 0.75))
    labels = [row[0] for row in summary_table(frame).rows]
    assert "general (r = 0.25)" in labels
    assert "soft" in labels
    assert len(set(labels)) == len(labels)


def test_small_and_bare_runs_have_reports(tmp_path):
    for place, gains in enumerate(({"no-kd": 0.0}, {"regular": 0.0}, {"no-kd": 0.0, "regular": 0.01})):
        for seeds in (1, 2):
            run = fake_study.write(tmp_path / f"{place}-{seeds}", fake_study.rows(seeds, gains), facts={})
            (run / "environment.json").unlink()
            check_page(report(run))


def test_thousand_cells_stay_light(tmp_path):
    frame = fake_study.rows(40, ratios=tuple(np.linspace(0, 0.9, 8).round(3)))
    assert len(frame[(frame["metric"] == "accuracy") & (frame["split"] == "test")]) > 1000
    path = report(fake_study.write(tmp_path, frame))
    assert path.stat().st_size < 2_000_000


@pytest.mark.parametrize(
    ("spoil", "words"),
    [
        (lambda run: (run / "config.json").unlink(), "no config.json"),
        (lambda run: (run / "config.json").write_text("{"), "config.json"),
        (lambda run: (run / "config.json").write_text('{"command": "align"}'), "mfh align"),
        (lambda run: (run / "results.csv").unlink(), "results.csv"),
        (lambda run: (run / "results.csv").write_text("arm,seed\nsoft,1\n"), "no column 'score'"),
        (lambda run: (run / "results.csv").write_text(""), "results.csv"),
        (lambda run: (run / "results.csv").write_bytes(b"\xff\xfe\x00arm"), "results.csv"),
        (lambda run: fake_study.rows(1).assign(value="many").to_csv(run / "results.csv"), "results.csv"),
        (lambda run: fake_study.rows(1).head(0).to_csv(run / "results.csv"), "no accuracy"),
    ],
)
def test_what_is_no_run(tmp_path, spoil, words):
    run = fake_study.write(tmp_path / "run", fake_study.rows(1))
    spoil(run)
    with pytest.raises(InputError) as error:
        report(run)
    assert words in str(error.value)
    assert "\n" not in str(error.value)
    assert not (run / "report.html").exists()


def test_no_run_at_all(tmp_path):
    with pytest.raises(InputError, match="no run folder"):
        report()
    with pytest.raises(InputError, match="is no folder"):
        report(tmp_path / "nowhere")


@pytest.mark.parametrize("counts", [(1, 1, 0), (1, 0, 0), (0, 2, 3), (4, 2, 3), (1, 30, 2), (3, 0, 1), (0, 1, 0)])
def test_venn_areas_are_to_scale(counts):
    general, teacher_only, student_only = counts
    radius, other = (math.sqrt((general + only) / math.pi) for only in (teacher_only, student_only))
    distance = centre_distance(radius, other, general)
    if 0 < general < min(general + teacher_only, general + student_only):
        assert lens(radius, other, distance) == pytest.approx(general)
    elif general:
        assert distance == abs(radius - other)  # one lies within the other
    else:
        assert distance > radius + other
    assert "to scale" in venn_picture(ModalityVenn(*counts)).caption


def test_settings_and_durations_in_words():
    settings = {"a": {"b": [1, 2], "c": None}, "d": True}
    assert list(_flatten(settings)) == [("a.b", "1, 2"), ("a.c", ""), ("d", "True")]
    assert [_duration(seconds) for seconds in (4.21, 42, 185, 7620)] == ["4.2 s", "42 s", "3 min 5 s", "2 h 7 min"]


def estimate(alpha, beta, gamma):
    return Shares(*(Measure(value, max(value - 0.1, 0.0), min(value + 0.1, 1.0)) for value in (alpha, beta, gamma)))


@pytest.mark.parametrize("counts", [(1, 1, 0), (5, 1, 0), (1, 4, 3), (2, 0, 0), (0, 2, 2), (1, 0, 40)])
def test_an_estimate_is_drawn_as_the_counts_that_it_hits(counts):
    venn = ModalityVenn(*counts)
    alpha, beta, gamma = venn.alpha, venn.beta, venn.gamma
    areas = [(venn.general + only) / venn.total for only in (venn.teacher_only, venn.student_only)]
    assert circle_areas(alpha, beta, gamma) == pytest.approx(areas)
    circles = [picture.draw().axes[0].patches for picture in (venn_picture(venn), drawn(alpha, beta, gamma))]
    radii = [[patch.radius for patch in part] for part in circles]
    places = [[patch.center[0] for patch in part] for part in circles]
    scale = radii[0][0] / radii[1][0]
    assert radii[0] == pytest.approx([scale * radius for radius in radii[1]])
    assert places[0] == pytest.approx([scale * place for place in places[1]], abs=1e-6)


def drawn(*shares):
    return estimated_venn_picture(estimate(*shares), 500)


def test_an_estimate_is_called_one():
    picture = drawn(0.5, 0.0, 0.5)
    assert picture.name == "venn-estimated"
    assert "estimated from 500 validation pairs" in picture.caption
    assert "gamma = 0.50 (0.40 to 0.60)" in picture.caption
    assert picture.draw().axes[0].get_title("center") == "estimated"
    written = [text.get_text() for text in picture.draw().axes[0].texts]
    assert {"50 %\ngeneral", "50 % teacher only"} <= set(written)
    assert "student only" not in " ".join(written)


def test_sizes_that_an_estimate_leaves_open_are_not_named():
    picture = drawn(1.0, 1.0, 0.0)
    assert "%" not in "".join(text.get_text() for text in picture.draw().axes[0].texts)
    assert "nothing is shared" in picture.alt


def test_an_open_estimate_is_not_drawn():
    for share in (Measure(None, note="not known"), Measure(0.4, 0.0, 1.0)):
        assert estimated_venn_picture(Shares(share, share, share), 500) is None


def test_axes_end_where_values_do():
    """Two seeds give intervals of hundreds of points; accuracies lie in [0, 100], their differences in [-100, 100]."""
    frame = fake_study.rows(2)
    wild = (frame["arm"] == "regular") & (frame["metric"] == "accuracy")
    frame.loc[wild, "value"] = [0.05 + 0.9 * (seed % 2) for seed in frame.loc[wild, "seed"]]
    summary = summarise(frame)
    low, high = gains_picture(summary).draw().axes[0].get_xlim()
    assert -110 < low < -90
    assert 90 < high < 110
    low, high = teachers_picture(summary).draw().axes[0].get_ylim()
    assert -10 < low < 10
    assert 90 < high < 110
