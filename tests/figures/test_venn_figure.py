import math

import pytest

from mfh.figures.style import ROLE_COLOURS, new_figure
from mfh.figures.venn import circle_areas, draw_venn


def circles(axes):
    """Area, centre and colour of the teacher's circle and of the student's."""
    from matplotlib.colors import to_hex

    return [(math.pi * patch.radius**2, patch.center[0], to_hex(patch.get_edgecolor())) for patch in axes.patches]


def test_areas_are_to_scale_and_the_same_overall():
    _, axes = new_figure(2, 2)
    gamma = 0.2
    teacher, student = circle_areas(alpha=0.8, beta=0.0, gamma=gamma)
    draw_venn(gamma, teacher - gamma, student - gamma, axes=axes)
    (teacher, _, _), (student, _, _) = circles(axes)
    assert student / teacher == pytest.approx(0.2)
    assert teacher + student - student == pytest.approx(1)


@pytest.mark.parametrize("areas", [(1, 1, 1), (0, 2, 3), (3, 2, 1), (1, 0, 1), (2, 1, 0)])
def test_the_teacher_is_blue_and_left_in_every_diagram(areas):
    _, given = new_figure(2, 2)
    for axes in (draw_venn(*areas, words=str).axes[0], draw_venn(*areas, axes=given).axes[0]):
        (_, teacher, blue), (_, student, orange) = circles(axes)
        assert teacher < student
        assert (blue, orange) == (ROLE_COLOURS["teacher"], ROLE_COLOURS["student"])
        assert (teacher + student) == pytest.approx(0, abs=0.5)


def test_small_diagrams_share_a_scale_and_name_the_circles_once():
    _, (first, second) = new_figure(4, 2, columns=2)
    draw_venn(1, 1, 0, axes=first)
    draw_venn(0, 1, 1, axes=second, names=False)
    assert first.get_xlim() == second.get_xlim()
    assert [text.get_text() for text in first.texts] == ["teacher", "student"]
    assert not second.texts
