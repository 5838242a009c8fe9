import subprocess
import sys
import xml.etree.ElementTree as ElementTree

import numpy as np
import pytest

from mfh.errors import InputError
from mfh.figures.intervals import Row, draw_intervals
from mfh.figures.saliency import draw_saliency
from mfh.figures.style import (
    METHOD_COLOURS,
    PALETTE,
    PHONE,
    arm_colour,
    drawn_for,
    hover,
    new_figure,
    save_figure,
    style,
)
from mfh.studies.grid import ARMS, CONTROLS, METHODS

SVG = "{http://www.w3.org/2000/svg}"


def drawn(label="general"):
    with style():
        figure, axes = new_figure(3.25, 2.5)
        axes.plot([0, 1], [0, 1], color=PALETTE["general"])
        axes.set_xlabel(label)
    return figure


def texts(path):
    return ["".join(node.itertext()) for node in ElementTree.parse(path).iter(f"{SVG}text")]


def test_style_is_restored_and_pyplot_not_used():
    import matplotlib

    before = dict(matplotlib.rcParams)
    with style():
        assert dict(matplotlib.rcParams) != before
    assert dict(matplotlib.rcParams) == before
    with pytest.raises(InputError), style():
        save_figure(drawn(), "figure.jpeg")
    assert dict(matplotlib.rcParams) == before


def test_callers_settings_do_not_leak_in():
    import matplotlib

    with matplotlib.rc_context({"font.size": 40, "axes.grid": True}), style():
        assert matplotlib.rcParams["font.size"] < 12
        assert not matplotlib.rcParams["axes.grid"]


def test_importing_is_light_and_drawing_leaves_pyplot_alone(tmp_path):
    code = (
        "import sys, mfh.figures.style, mfh.reporting, mfh.reporting.page, mfh.reporting.summary, mfh.studies.stats\n"
        "assert not {'matplotlib', 'torch', 'pandas', 'jinja2', 'scipy'} & set(sys.modules)\n"
        f"mfh.figures.style.save_figure(mfh.figures.style.new_figure()[0], {str(tmp_path / 'f.svg')!r})\n"
        "assert 'matplotlib.pyplot' not in sys.modules and 'torch' not in sys.modules\n"
    )
    subprocess.run([sys.executable, "-c", code], check=True)


def test_every_arm_has_its_colour():
    arms = ARMS + CONTROLS
    colours = [PALETTE[arm] for arm in arms]
    assert len(set(colours)) == len(arms)
    assert set(PALETTE) - set(arms) == {"true-general", "algorithm-1"}
    assert arm_colour("somebody's arm") not in colours


def test_every_method_has_its_colour_and_a_focus_is_a_darker_shade():
    assert set(METHOD_COLOURS) == set(METHODS) - {"kd"}
    assert len({*METHOD_COLOURS.values(), *PALETTE.values()}) == len(METHOD_COLOURS) + len(set(PALETTE.values()))
    names = [*METHOD_COLOURS, "mine", "theirs"]
    for name in names:
        assert 3 <= contrast(arm_colour(name)) < contrast(arm_colour(f"{name}+soft"))


def contrast(colour):
    channels = np.array([int(colour[place : place + 2], 16) / 255 for place in (1, 3, 5)])
    linear = np.where(channels <= 0.04045, channels / 12.92, ((channels + 0.055) / 1.055) ** 2.4)
    return 1.05 / (linear @ [0.2126, 0.7152, 0.0722] + 0.05)


@pytest.mark.parametrize("arm", [arm for arm in PALETTE if arm not in ("soft-shuffled", "tempered")])
def test_marks_stand_out_from_white(arm):
    assert contrast(PALETTE[arm]) >= 3  # WCAG 1.4.11, graphical objects


@pytest.mark.parametrize(
    ("suffix", "start"), [("svg", b"<?xml"), ("pdf", b"%PDF"), ("png", b"\x89PNG"), ("PNG", b"\x89PNG")]
)
def test_files_are_whole_and_equal_figures_give_equal_bytes(tmp_path, suffix, start):
    first = save_figure(drawn(), tmp_path / "new" / f"a.{suffix}")
    second = save_figure(drawn(), tmp_path / f"b.{suffix}")
    assert first.read_bytes().startswith(start)
    assert first.read_bytes() == second.read_bytes()
    assert first.read_bytes() != save_figure(drawn("other"), tmp_path / f"c.{suffix}").read_bytes()
    assert [file.name for file in (tmp_path / "new").iterdir()] == [f"a.{suffix}"]


def test_text_stays_text_and_is_taken_literally(tmp_path):
    label = "cost $x_1$ & <script>alert(1)</script> \u03b3"
    path = save_figure(drawn(label), tmp_path / "figure.svg")
    assert label in texts(path)
    assert "<script" not in path.read_text(encoding="utf-8")


def test_unknown_suffix(tmp_path):
    with pytest.raises(InputError, match=r"\.svg, \.pdf or \.png"):
        save_figure(drawn(), tmp_path / "figure.jpeg")
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("num_channels", [1, 8, 1000])
@pytest.mark.parametrize("known", [True, False])
def test_saliency(tmp_path, num_channels, known):
    scores = np.random.default_rng(0).normal(size=num_channels)
    truth = np.arange(num_channels) % 2 == 0 if known else None
    figure = draw_saliency(scores, ratio=0.5, truth=truth)
    path = save_figure(figure, tmp_path / "saliency.svg")
    assert path.stat().st_size < 300_000
    assert ("removed" in texts(path)) == (num_channels > 1)
    assert ("truly general" in texts(path)) == known
    # Every channel is counted once, from the lowest score at 0 to the highest at 1.
    bars = [bar for container in figure.axes[0].containers for bar in container if bar.get_height()]
    assert sum(bar.get_height() for bar in bars) == num_channels
    assert min(bar.get_x() for bar in bars) == 0
    if num_channels > 1:
        assert max(bar.get_x() + bar.get_width() for bar in bars) == pytest.approx(1)


def test_equal_scores_are_drawn(tmp_path):
    save_figure(draw_saliency(np.ones(5)), tmp_path / "flat.png")


def test_the_probe_is_shown_as_it_is():
    axes = draw_saliency(np.array([-0.3, 0.21, 0.41]), score="probe").axes[0]
    filled = [bar.get_x() for bar in axes.containers[0] if bar.get_height()]
    assert filled == pytest.approx([0, 0.2, 0.4])
    assert "weight" not in axes.get_xlabel()


def test_the_curve_is_that_of_the_known_truth():
    scores, truth = np.arange(8.0), np.array([0, 0, 1, 0, 1, 1, 1, 1], dtype=bool)
    right = draw_saliency(scores, truth=truth).axes[1]
    assert right.get_title("left") == "AUROC 0.933"  # of 15 pairs, one is in the wrong order
    assert len(draw_saliency(scores, truth=np.ones(8, dtype=bool)).axes) == 1  # nothing to tell apart


def test_a_phone_has_axes_below_each_other_and_names_above_their_rows():
    row = Row("soft", "#c0508f", {0: 1.0, 1: 3.0}, 2.0, 1.0, 3.0, "+2.0 (1.0 to 3.0)")
    wide = draw_intervals([row] * 3, label="gain", ends=(-100, 100))
    with drawn_for("phone"):
        narrow = draw_intervals([row] * 3, label="gain", ends=(-100, 100))
        figure, axes = new_figure(6.5, 2, columns=2, sharey=True)
    assert wide.get_size_inches()[0] == 6.5
    assert narrow.get_size_inches()[0] == figure.get_size_inches()[0] == PHONE
    assert figure.get_size_inches()[1] == 4
    assert axes[0].get_position().y0 > axes[1].get_position().y1
    assert [text.get_text() for text in wide.axes[0].get_yticklabels()] == ["soft"] * 3
    assert [text.get_text() for text in narrow.axes[0].get_yticklabels()] == [""] * 3
    assert [text.get_text() for text in narrow.axes[0].texts] == ["soft", "+2.0 (1.0 to 3.0)"] * 3


def test_values_are_told_where_the_pointer_rests(tmp_path):
    with style():
        figure, axes = new_figure(3, 2)
        hover(axes.plot([0, 1], [0, 1], "o"), "<b> & \x1b")
    root = ElementTree.parse(save_figure(figure, tmp_path / "a.svg")).getroot()
    assert [title.text for title in root.iter(f"{SVG}title")] == ["<b> & \\x1b"]
