import subprocess
import sys
import xml.etree.ElementTree as ElementTree

import numpy as np
import pytest

from mfh.errors import InputError
from mfh.figures.saliency import draw_saliency
from mfh.figures.style import METHOD_COLOURS, PALETTE, arm_colour, new_figure, save_figure, style
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
    # By channel, heights are in order of the channels, min-max normalised.
    drawn_points = {
        x: y for line in figure.axes[0].lines for x, y in zip(line.get_xdata(), line.get_ydata(), strict=True)
    }
    assert len(drawn_points) == num_channels
    if num_channels > 1:
        assert drawn_points[int(scores.argmax())] == 1
        assert drawn_points[int(scores.argmin())] == 0


def test_equal_scores_are_drawn(tmp_path):
    save_figure(draw_saliency(np.ones(5)), tmp_path / "flat.png")


def test_probe_is_shown_as_the_weight_it_is():
    figure = draw_saliency(np.array([-0.3, 0.2, 0.4]), score="probe")
    assert figure.axes[0].lines[0].get_ydata().tolist() == [0, 0.2, 0.4]
