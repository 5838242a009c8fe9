"""The modality Venn diagram: the teacher's circle blue and on the left, the student's orange and on the right."""

import math
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

from mfh.figures.style import INK, ROLE_COLOURS, ROLE_INKS, is_narrow, new_figure, style

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure


def draw_venn(
    general: float,
    teacher_only: float,
    student_only: float,
    *,
    words: Callable[[Any], str] | None = None,
    title: str = "",
    axes: "Axes | None" = None,
    names: bool = True,
) -> "Figure":
    """A modality Venn diagram whose areas are to scale.

    Both circles together cover the same area in every diagram, so that diagrams side by side can be compared.

    Args:
        general: Area of what both modalities have; a count, or a share.
        teacher_only: Area of what only the teacher's modality has.
        student_only: Area of what only the student's modality has.
        words: Turns an area into the text that stands at this part, for instance `str` for counts. None writes no
            text at the parts, which suits a small diagram.
        title: Title above the circles.
        axes: Axes to draw into, for small diagrams side by side. None makes a figure.
        names: Whether to name the two circles.

    Returns:
        The figure that holds the diagram.
    """
    total = general + teacher_only + student_only
    teacher_radius, student_radius = (
        math.sqrt((general + only) / total / math.pi) for only in (teacher_only, student_only)
    )
    distance = centre_distance(teacher_radius, student_radius, general / total)
    begin, end = min(-teacher_radius, distance - student_radius), max(teacher_radius, distance + student_radius)
    middle = (begin + end) / 2
    circles = {"teacher": (-middle, teacher_radius), "student": (distance - middle, student_radius)}
    with style():
        if axes is None:
            height = 2.2 if is_narrow() else 2.9
            _, axes = new_figure(5.2, height + (0.2 if title else 0))
        _draw_circles(axes, circles)
        axes.set_title(title, loc="center", fontweight="normal")
        axes.set_axis_off()
        axes.set_aspect("equal")
        if words is None:
            axes.set(xlim=(-0.85, 0.85), ylim=(-0.8 if names else -0.6, 0.6))
            if names:
                _name_below(axes)
        else:
            _label_parts(axes, circles, (general, teacher_only, student_only), words)
            if names:
                _name_above_and_below(axes, circles)
    figure: Figure = axes.figure.figure  # of a subfigure, the whole
    return figure


def _draw_circles(axes: "Axes", circles: dict[str, tuple[float, float]]) -> None:
    from matplotlib.patches import Circle

    for role, (centre, radius) in circles.items():
        colour = ROLE_COLOURS[role]
        axes.add_patch(Circle((centre, 0), radius, facecolor=(colour, 0.2), edgecolor=colour, linewidth=1.8))


def _name_below(axes: "Axes") -> None:
    for role, place, side in (("teacher", -0.8, "left"), ("student", 0.8, "right")):
        axes.text(place, -0.57, role, color=ROLE_INKS[role], fontsize=8.5, va="top", ha=side)


def _name_above_and_below(axes: "Axes", circles: dict[str, tuple[float, float]]) -> None:
    """Name the circles at different heights: where one lies within the other, names beside them would collide."""
    size = max(radius for _, radius in circles.values())
    for role, place, vertical in (("teacher", 1.08 * size, "bottom"), ("student", -1.08 * size, "top")):
        axes.text(
            circles[role][0],
            place,
            f"{role}'s modality",
            ha="center",
            va=vertical,
            color=ROLE_INKS[role],
            fontweight="bold",
        )


def _label_parts(
    axes: "Axes",
    circles: dict[str, tuple[float, float]],
    areas: tuple[float, float, float],
    words: Callable[[Any], str],
) -> None:
    general, teacher_only, student_only = areas
    (teacher, teacher_radius), (student, student_radius) = circles["teacher"], circles["student"]
    size = max(teacher_radius, student_radius)
    teacher_begin, teacher_end = teacher - teacher_radius, teacher + teacher_radius
    student_begin, student_end = student - student_radius, student + student_radius
    begin, end = min(teacher_begin, student_begin), max(teacher_end, student_end)
    if general:
        left, right = max(student_begin, teacher_begin), min(student_end, teacher_end)
        shown = f"{words(general)}\ngeneral" if right - left > 0.55 * size else words(general)
        axes.text((left + right) / 2, 0, shown, ha="center", va="center", linespacing=1.4)
    outside = [
        (teacher_only, (teacher_begin + min(student_begin, teacher_end)) / 2, begin - 0.25 * size, "teacher"),
        (student_only, (student_end + max(teacher_end, student_begin)) / 2, end + 0.25 * size, "student"),
    ]
    for area, place, text_place, role in outside:
        if area:
            axes.annotate(
                f"{words(area)} {role} only".strip(),
                (place, 0),
                (text_place, 0),
                ha="right" if text_place < place else "left",
                va="center",
                arrowprops={"arrowstyle": "-", "color": INK, "linewidth": 0.8, "shrinkA": 2, "shrinkB": 0},
            )
            axes.plot([place], [0], "o", color=INK, markersize=3)
    axes.set(xlim=(begin - 1.2 * size, end + 1.2 * size), ylim=(-1.35 * size, 1.35 * size))


def circle_areas(alpha: float, beta: float, gamma: float) -> tuple[float, float]:
    """Areas of the teacher's and the student's circle whose overlap has the area gamma; together they cover 1.

    With gamma = 0 the fractions do not say which modality has more. Both areas are then 0.5.

    Args:
        alpha: Share of the teacher's decisive features that only the teacher has.
        beta: Share of the student's decisive features that only the student has.
        gamma: Share of all decisive features that both have.
    """
    if gamma > 0 and max(alpha, beta) < 1:
        return gamma / (1 - alpha), gamma / (1 - beta)
    return 0.5, 0.5


def centre_distance(radius: float, other: float, overlap: float) -> float:
    """Distance between the centres of two circles whose overlap has a given area.

    Args:
        radius: Radius of one circle.
        other: Radius of the other circle.
        overlap: Area of the overlap. 0 leaves a gap between the circles.
    """
    from scipy.optimize import brentq

    if overlap <= 0:
        return 1.1 * (radius + other)
    nearest, farthest = abs(radius - other), radius + other
    if overlap >= math.pi * min(radius, other) ** 2 * (1 - 1e-6):
        return nearest
    # Concentric circles have no angle between their cuts, so the search begins just beside them.
    return float(brentq(lambda distance: lens(radius, other, distance) - overlap, nearest + 1e-9 * farthest, farthest))


def lens(radius: float, other: float, distance: float) -> float:
    """Area that two intersecting circles have in common.

    Args:
        radius: Radius of one circle.
        other: Radius of the other circle.
        distance: Distance between their centres.
    """

    def segment(one: float, two: float) -> float:
        cosine = (distance**2 + one**2 - two**2) / (2 * distance * one)
        angle = math.acos(min(1.0, max(-1.0, cosine)))
        return one**2 * (angle - math.sin(angle) * math.cos(angle))

    return segment(radius, other) + segment(other, radius)
