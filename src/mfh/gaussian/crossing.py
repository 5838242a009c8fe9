"""The gamma at which a teacher begins to help."""

from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from mfh.errors import InputError
from mfh.gaussian.tables import gains

if TYPE_CHECKING:
    import pandas as pd


@dataclass(frozen=True)
class SignChange:
    """The gamma at which the mean gain over No-KD rises through zero.

    Args:
        gamma: Interpolated linearly between the settings. NaN if the gain does not rise through zero.
        low: Lower end of the 95 % interval over seeds. NaN if too few resamples have a sign change.
        high: Upper end of that interval.
        found: Share of the bootstrap resamples in which the gain rises through zero.
        num_seeds: Number of seeds that were resampled.
    """

    gamma: float
    low: float
    high: float
    found: float
    num_seeds: int

    def describe(self) -> str:
        """The finding in a sentence."""
        if np.isnan(self.gamma):
            return f"The mean gain from the teacher does not change sign along gamma ({self.num_seeds} seeds)."
        interval = (
            f"95 % interval {self.low:.2f} to {self.high:.2f}"
            if np.isfinite(self.low)
            else f"no interval: only {100 * self.found:.0f} % of resamples change sign"
        )
        return (
            f"The gain from the teacher changes sign at gamma = {self.gamma:.2f} ({interval}, {self.num_seeds} seeds)."
        )


def sign_change(frame: "pd.DataFrame", *, resamples: int = 2000, seed: int = 0) -> SignChange:
    """The gamma at which the students' mean gain from the regular teacher changes sign.

    Seeds are resampled with replacement. In each resample, straight lines join the mean gains; the result is the last
    gamma where they go from negative to positive. The interval spans the middle 95 % of these gammas. It covers the
    draws of the data, not the shape of the curve between settings.

    Args:
        frame: Results of `vary_gamma`.
        resamples: Number of bootstrap resamples.
        seed: Seed of the bootstrap.

    Raises:
        InputError: The results have fewer than two values of gamma.
    """
    gain = gains(frame)
    wide = gain[gain["arm"] == "regular"].pivot_table(index="seed", columns="gamma", values="gain").sort_index(axis=1)
    gammas, values = wide.columns.to_numpy(dtype=np.float64), wide.to_numpy(dtype=np.float64)
    if len(gammas) < 2:
        raise InputError(f"the results have gamma {gammas.tolist()} only; a sign change needs at least two values")
    generator = np.random.default_rng(seed)
    places = np.array(
        [
            _last_rise(gammas, values[generator.integers(len(values), size=len(values))].mean(axis=0))
            for _ in range(resamples)
        ]
    )
    place = _last_rise(gammas, values.mean(axis=0))
    found = float(np.isfinite(places).mean())
    low = high = float("nan")
    if np.isfinite(place) and found >= 0.95 and len(values) > 1:
        low, high = (float(end) for end in np.nanquantile(places, [0.025, 0.975]))
    return SignChange(place, low, high, found, len(values))


def _last_rise(gammas: NDArray[np.float64], gain: NDArray[np.float64]) -> float:
    """The last gamma where the line through the gains rises through zero; NaN if it does not."""
    for k in range(len(gammas) - 2, -1, -1):
        if gain[k] <= 0 < gain[k + 1]:
            return float(gammas[k] - gain[k] * (gammas[k + 1] - gammas[k]) / (gain[k + 1] - gain[k]))
    return float("nan")
