"""Random data of the shapes of htad, numerals and smartwatch, for tests where the real files are not installed."""

import numpy as np

from mfh.tasks import htad, numerals, smartwatch
from mfh.tasks.numerals.data import VIEWS
from mfh.tasks.views import Views

RNG = np.random.default_rng(0)


def views_of(shapes, per_class, classes, groups=None, unit="groups"):
    number = per_class * classes
    views = {name: RNG.normal(size=(number, *shape)).astype(np.float32) for name, shape in shapes.items()}
    return Views(views, np.arange(number) % classes, tuple("abcdefghij"[:classes]), groups, unit)


def replace_real_data(monkeypatch):
    """Let the three tasks make their tasks of random data."""
    of_htad = views_of({"audio": (36,), "accelerometer": (16,)}, 100, 7)
    of_numerals = views_of({name: (size,) for name, size in VIEWS.items()}, 110, 10)
    shapes = {"accelerometer": (3, 32), "gyroscope": (3, 32)}
    of_watch = views_of(shapes, 50, 7, np.repeat(np.arange(10), 35), "people")
    monkeypatch.setattr(htad, "load", lambda: of_htad)
    monkeypatch.setattr(numerals, "load", lambda: of_numerals)
    monkeypatch.setattr(smartwatch, "load", lambda window: of_watch)
