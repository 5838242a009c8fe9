"""HTAD, read from the package `multiviewstacking`."""

from functools import cache

import numpy as np

from mfh.tasks.packages import installed_file
from mfh.tasks.views import Views

_DIGEST = "eedeef7290720759a6e4851c18eb6bc93cfc839f563098d5f1588a4e3dc47bce"


@cache
def load() -> Views:
    """The 1386 samples: 36 statistics of the sound ("audio"), 16 of the wrist's movement ("accelerometer").

    Raises:
        InputError: The package is not installed.
    """
    content = installed_file("htad", "multiviewstacking", "0.7.5", "data/htad.csv", _DIGEST)
    names, *rows = (line.split(",") for line in content.decode().splitlines())
    classes, target = np.unique([row[0] for row in rows], return_inverse=True)
    numbers = np.array([row[1:] for row in rows], dtype=np.float32)
    is_sound = np.array([name.startswith("v1_") for name in names[1:]])
    views = {"audio": numbers[:, is_sound], "accelerometer": numbers[:, ~is_sound]}
    return Views(views, target.astype(np.int64), tuple(map(str, classes)))
