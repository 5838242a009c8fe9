"""Two circles drawn to scale: their areas for given shares, and how far apart their centres are."""

import math


def circle_areas(alpha: float, beta: float, gamma: float) -> tuple[float, float]:
    """Areas of the teacher's and the student's circle that overlap in the area gamma, where both together cover 1.

    With gamma = 0 the fractions leave open which modality has more: both circles are alike.
    """
    if gamma > 0 and max(alpha, beta) < 1:
        return gamma / (1 - alpha), gamma / (1 - beta)
    return 0.5, 0.5


def centre_distance(radius: float, other: float, overlap: float) -> float:
    """How far apart the centres of two circles are whose overlap has the given area; no overlap leaves a gap."""
    from scipy.optimize import brentq

    if overlap <= 0:
        return 1.1 * (radius + other)
    nearest, farthest = abs(radius - other), radius + other
    if overlap >= math.pi * min(radius, other) ** 2 * (1 - 1e-6):
        return nearest
    # Concentric circles have no angle between their cuts, so the search begins just beside them.
    return float(brentq(lambda distance: lens(radius, other, distance) - overlap, nearest + 1e-9 * farthest, farthest))


def lens(radius: float, other: float, distance: float) -> float:
    """Area common to two circles that cut each other."""

    def segment(one: float, two: float) -> float:
        cosine = (distance**2 + one**2 - two**2) / (2 * distance * one)
        angle = math.acos(min(1.0, max(-1.0, cosine)))
        return one**2 * (angle - math.sin(angle) * math.cos(angle))

    return segment(radius, other) + segment(other, radius)
