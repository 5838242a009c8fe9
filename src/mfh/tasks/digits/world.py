"""A world with known truth: recordings of dialled digits and pictures of handwritten digits.

A pair is a recording of digits dialled on a telephone keypad (the teacher's modality) and a picture of handwritten
digits (the student's). Every digit is uniform on 0 to 9 and independent of the others. `general` digits occur in both,
`teacher_only` digits in the recording, `student_only` digits in the picture. Distractors occur in one of the two and
decide nothing. The label says whether the sum of the decisive digits exceeds 4.5 per digit; of more than two classes,
which of several equally likely ranges the sum lies in. So it is known exactly what decides the label, and which
modality has it.

Shapes: N pairs, A digits in the recording, B digits in the picture, D decisive digits.
"""

import math
from dataclasses import dataclass
from functools import cache
from typing import Any, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.utils.data import TensorDataset

from mfh.errors import InputError
from mfh.tasks.splits import SPLITS, Split
from mfh.venn import ModalityVenn

SAMPLE_RATE = 4000  # Hz
KEY_SAMPLES = 400  # 0.1 s per key
STFT_SIZE = 128
STFT_HOP = 64
SCAN_SIZE = 8
MAX_DIGITS = 8  # per modality
MAX_CLASSES = 10

# The standard keypad (ITU-T Q.23): a key sounds the tone of its row and the tone of its column, in Hz.
_ROWS = (697.0, 770.0, 852.0, 941.0)
_COLUMNS = (1209.0, 1336.0, 1477.0)
_KEYPAD = ("123", "456", "789", "*0#")
TONES: NDArray[np.float64] = np.array(
    [
        next((_ROWS[r], _COLUMNS[c]) for r in range(4) for c in range(3) if _KEYPAD[r][c] == str(digit))
        for digit in range(10)
    ]
)
"""(10, 2): the two frequencies of every digit's key, in Hz."""

_COUNTS = ("general", "teacher_only", "student_only", "teacher_distractors", "student_distractors")
_SHARES = {"train": 0.5, "val": 0.25, "test": 0.25}  # of every digit's scans


class Digits(NamedTuple):
    """Digits and labels of N pairs, before anything is rendered.

    Attributes:
        heard: Digits of the recordings, (N, A): general, teacher-only, distractors.
        seen: Digits of the pictures, (N, B): general, student-only, distractors.
        target: Labels 0 to K - 1, (N,).
    """

    heard: NDArray[np.int64]
    seen: NDArray[np.int64]
    target: NDArray[np.int64]


@dataclass(frozen=True)
class World:
    """Which digits there are, where they occur, and how noisy they are.

    Args:
        general: Number of decisive digits in both the recording and the picture.
        teacher_only: Number of decisive digits in the recording only.
        student_only: Number of decisive digits in the picture only.
        student_distractors: Number of digits in the picture that decide nothing.
        teacher_distractors: Number of digits in the recording that decide nothing.
        audio_noise: Standard deviation of the white noise. Each of a key's two tones has amplitude 1.
        picture_noise: Standard deviation of the noise on pixels. Without noise they lie in [0, 1].
        num_classes: Number K of classes: ranges of the sum of the decisive digits, as equally likely as may be. With 2
            the label says whether the sum exceeds 4.5 per digit.

    Raises:
        InputError: A count is negative or not whole, no digit is decisive, a modality has no digit or more than
            `MAX_DIGITS`, there are fewer than 2 or more than `MAX_CLASSES` classes, or a noise is negative or not
            finite.

    Example:
        >>> world = World(general=1, teacher_only=1, student_distractors=1)
        >>> world.num_heard, world.num_seen, world.best_accuracy(known=world.general)
        (2, 2, 0.75)
    """

    general: int = 1
    teacher_only: int = 1
    student_only: int = 0
    student_distractors: int = 1
    teacher_distractors: int = 0
    audio_noise: float = 1.0
    picture_noise: float = 0.1
    num_classes: int = 2

    def __post_init__(self) -> None:
        for name in _COUNTS:
            count = getattr(self, name)
            if isinstance(count, bool) or not isinstance(count, int | np.integer) or count < 0:
                raise InputError(f"{name} is {count!r}; a count of digits must be a whole number from 0")
        _ = self.venn  # raises when nothing is decisive
        for modality, counts, number in (
            ("recording", "general, teacher_only, teacher_distractors", self.num_heard),
            ("picture", "general, student_only, student_distractors", self.num_seen),
        ):
            if not 1 <= number <= MAX_DIGITS:
                raise InputError(
                    f"the {modality} has {number} digits; 1 to {MAX_DIGITS} were expected: change {counts}"
                )
        if isinstance(self.num_classes, bool) or self.num_classes not in range(2, MAX_CLASSES + 1):
            raise InputError(f"num_classes is {self.num_classes!r}; choose 2 to {MAX_CLASSES}")
        for name in ("audio_noise", "picture_noise"):
            noise = getattr(self, name)
            if not (isinstance(noise, int | float | np.floating) and math.isfinite(noise) and noise >= 0):
                raise InputError(f"{name} is {noise!r}; a standard deviation must be a finite number from 0")

    @property
    def venn(self) -> ModalityVenn:
        """The decisive digits as a modality Venn diagram."""
        return ModalityVenn(self.general, self.teacher_only, self.student_only)

    @property
    def num_heard(self) -> int:
        """Number A of digits in the recording."""
        return self.general + self.teacher_only + self.teacher_distractors

    @property
    def num_seen(self) -> int:
        """Number B of digits in the picture."""
        return self.general + self.student_only + self.student_distractors

    @property
    def num_decisive(self) -> int:
        """Number D of digits that decide the label."""
        return self.venn.total

    @property
    def limits(self) -> list[int]:
        """The K - 1 sums of decisive digits above which the next class begins."""
        ways = np.cumsum(_sum_ways(self.num_decisive))
        return [int(np.argmax(ways * self.num_classes >= turn * ways[-1])) for turn in range(1, self.num_classes)]

    def best_accuracy(self, known: int) -> float:
        """The highest expected accuracy for a reader who knows `known` of the decisive digits.

        The other digits are uniform. So for each sum of the known digits, enumeration gives the better guess and how
        often it is correct. `known=0` gives the accuracy of always guessing the majority class.

        Args:
            known: Number of known decisive digits, 0 to D.

        Returns:
            The accuracy as a fraction in [1 / K, 1].

        Raises:
            InputError: `known` is negative or larger than D.
        """
        if not 0 <= known <= self.num_decisive:
            raise InputError(f"known is {known!r}; choose 0 to {self.num_decisive}, the number of decisive digits")
        known_ways, other_ways = _sum_ways(known), _sum_ways(self.num_decisive - known)
        right = 0
        for known_sum, ways in enumerate(known_ways):
            of_class = [0] * self.num_classes
            for other_sum, others in enumerate(other_ways):
                of_class[np.searchsorted(self.limits, known_sum + other_sum)] += others
            right += ways * max(of_class)
        return float(right / 10**self.num_decisive)

    def facts(self) -> dict[str, Any]:
        """Everything that is known exactly about this world, as values that JSON can hold. Accuracies are fractions."""
        venn = self.venn
        two = self.num_classes == 2
        says = (
            f"whether the decisive digits sum to more than {4.5 * self.num_decisive:g}"
            if two
            else f"which of {self.num_classes} equally likely ranges the sum of the decisive digits lies in"
        )
        return {
            "description": (
                f"Recordings of {self.num_heard} dialled and pictures of {self.num_seen} handwritten digits: "
                f"{self.general} in both, {self.teacher_only} decisive only in the recording, "
                f"{self.student_only} only in the picture, the others distractors; "
                f"the label says {says}."
            ),
            **{name: int(getattr(self, name)) for name in _COUNTS},
            "audio_noise": float(self.audio_noise),
            "picture_noise": float(self.picture_noise),
            "alpha": venn.alpha,
            "beta": venn.beta,
            "gamma": venn.gamma,
            "best_teacher_accuracy": self.best_accuracy(self.general + self.teacher_only),
            "best_student_accuracy": self.best_accuracy(self.general + self.student_only),
            "best_joint_accuracy": self.best_accuracy(self.num_decisive),
            "majority_accuracy": self.best_accuracy(0),
            "classes": ["small sum", "large sum"] if two else self._ranges(),
        }

    def _ranges(self) -> list[str]:
        """The classes in words."""
        first = [0, *(limit + 1 for limit in self.limits)]
        last = [*self.limits, 9 * self.num_decisive]
        return [f"sum {low} to {high}" for low, high in zip(first, last, strict=True)]

    def draw(self, number: int, generator: np.random.Generator) -> Digits:
        """Draw the digits and labels of some pairs.

        Args:
            number: Number of pairs.
            generator: Draws the digits.
        """
        digits = generator.integers(10, size=(number, self.num_decisive))
        general, teacher_only, student_only = np.split(digits, [self.general, self.general + self.teacher_only], 1)
        heard_distractors = generator.integers(10, size=(number, self.teacher_distractors))
        seen_distractors = generator.integers(10, size=(number, self.student_distractors))
        return Digits(
            heard=np.hstack([general, teacher_only, heard_distractors]),
            seen=np.hstack([general, student_only, seen_distractors]),
            target=np.searchsorted(self.limits, digits.sum(1)),
        )

    def split(self, name: Split, number: int, seed: int) -> TensorDataset:
        """Draw and render one split of a data set.

        Each split has a random stream of its own, so its size changes nothing in the others.

        Args:
            name: "train", "val" or "test". Pictures of different splits share no scan.
            number: Number N of pairs.
            seed: Seed of the digits, the noise and the split of the scans.

        Returns:
            Recordings (N, 1, 65, T), pictures (N, 1, 8, 8 B) and targets (N,), in float32 and int64. `spectrogram`
            says what T is.

        Raises:
            InputError: `number` is not positive or `seed` is negative.
        """
        if isinstance(number, bool) or not isinstance(number, int | np.integer) or number < 1:
            raise InputError(f"num_{name} is {number!r}; a split needs a whole number of pairs from 1")
        _check_seed(seed)
        generator = np.random.default_rng([seed, 1 + SPLITS.index(name)])
        digits = self.draw(number, generator)
        recording = spectrogram(dial(digits.heard, self.audio_noise, generator))
        picture = write(digits.seen, split_scans(seed)[name], self.picture_noise, generator)
        return TensorDataset(recording, picture, torch.from_numpy(digits.target))


def dial(digits: NDArray[np.int64], noise: float, generator: np.random.Generator) -> NDArray[np.float32]:
    """Sound of digits dialled one after the other, without pauses.

    Each key sounds its two tones: sinusoids of amplitude 1 with random phases.

    Args:
        digits: Digits to dial, (N, A).
        noise: Standard deviation of the white noise.
        generator: Draws phases and noise.

    Returns:
        Samples at 4 kHz, (N, 400 A).
    """
    number, keys = digits.shape
    time = np.arange(KEY_SAMPLES) / SAMPLE_RATE
    phases = generator.uniform(0, 2 * np.pi, size=(number, keys, 2, 1))
    # sin(wt + phi) = sin(wt) cos(phi) + cos(wt) sin(phi) needs the sinusoids of ten keys only.
    angles = 2 * np.pi * TONES[:, :, None] * time
    tones = np.sin(angles)[digits] * np.cos(phases) + np.cos(angles)[digits] * np.sin(phases)
    signal: NDArray[np.float32] = tones.sum(2).reshape(number, keys * KEY_SAMPLES).astype(np.float32)
    signal += np.float32(noise) * generator.standard_normal(signal.shape, dtype=np.float32)
    return signal


def spectrogram(signal: NDArray[np.float32]) -> Tensor:
    """Logarithmic magnitude spectrogram, log(1 + |STFT|), Hann windows of 128 samples every 64.

    Args:
        signal: Samples, (N, 400 A).

    Returns:
        The spectrograms, (N, 1, 65, T) with T = 1 + floor(6.25 A). Bin f is at 31.25 f Hz, and frame t is centred on
        sample 64 t.
    """
    spectrum = torch.stft(
        torch.from_numpy(signal),
        STFT_SIZE,
        STFT_HOP,
        window=torch.hann_window(STFT_SIZE),
        return_complex=True,
    )
    return spectrum.abs().log1p_()[:, None]


def write(digits: NDArray[np.int64], scans: NDArray[np.int64], noise: float, generator: np.random.Generator) -> Tensor:
    """Pictures of handwritten digits side by side. Each digit is a scan drawn with replacement.

    Args:
        digits: Digits to show, (N, B).
        scans: Indices of the scans to draw from, as in `load_scans`.
        noise: Standard deviation of the noise on pixels, which are not clipped.
        generator: Draws scans and noise.

    Returns:
        The pictures, (N, 1, 8, 8 B) float32.
    """
    images, classes = load_scans()
    number, width = digits.shape
    chosen = np.empty_like(digits)
    for digit in range(10):
        where = digits == digit
        chosen[where] = generator.choice(scans[classes[scans] == digit], size=int(where.sum()))
    picture = images[chosen].transpose(0, 2, 1, 3).reshape(number, 1, SCAN_SIZE, SCAN_SIZE * width)
    return torch.from_numpy(picture + np.float32(noise) * generator.standard_normal(picture.shape, dtype=np.float32))


@cache
def load_scans() -> tuple[NDArray[np.float32], NDArray[np.int64]]:
    """The 1797 scans of handwritten digits that ship inside scikit-learn (UCI "optdigits", test part).

    Returns:
        Images in [0, 1], (1797, 8, 8), and their digits, (1797,). Both are read-only.
    """
    from sklearn.datasets import load_digits

    bunch = load_digits()
    images = (bunch.images / 16).astype(np.float32)
    classes = bunch.target.astype(np.int64)
    images.setflags(write=False)
    classes.setflags(write=False)
    return images, classes


def split_scans(seed: int) -> dict[Split, NDArray[np.int64]]:
    """The scans of each split: half of every digit's scans for training, a quarter each for the other two.

    Args:
        seed: Seed that shuffles the scans of every digit.

    Returns:
        Disjoint arrays of indices into `load_scans`, which together cover all scans.
    """
    _check_seed(seed)
    generator = np.random.default_rng([seed, 0])
    _, classes = load_scans()
    parts: dict[Split, list[NDArray[np.int64]]] = {name: [] for name in SPLITS}
    for digit in range(10):
        scans = generator.permutation(np.flatnonzero(classes == digit))
        cuts = np.round(np.cumsum([_SHARES[name] for name in SPLITS[:-1]]) * len(scans)).astype(int)
        for name, part in zip(SPLITS, np.split(scans, cuts), strict=True):
            parts[name].append(part)
    return {name: np.concatenate(part) for name, part in parts.items()}


def _sum_ways(number: int) -> list[int]:
    """The number of ways in which digits sum to 0, 1, 2, ..., in whole numbers and so exact."""
    ways = [1]
    for _ in range(number):
        ways = [sum(ways[max(0, total - 9) : total + 1]) for total in range(len(ways) + 9)]
    return ways


def _check_seed(seed: int) -> None:
    if isinstance(seed, bool) or not isinstance(seed, int | np.integer) or seed < 0:
        raise InputError(f"seed is {seed!r}; a whole number from 0 was expected")
