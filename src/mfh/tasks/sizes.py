"""Sizes of prepared samples: options of `mfh prepare` and arguments of the library, written once. Imports no torch."""

from dataclasses import dataclass
from typing import Annotated

from mfh.values import Bounds, check_fields

#: Sampling rate of VGGSound's prepared sound in Hz, and the fewest samples that fill a window of
#: the spectrogram.
VGGSOUND_RATE, VGGSOUND_LEAST = 16_000, 1024
#: Number of mel bands, from which the coefficients of RAVDESS are computed.
NUM_MEL_BANDS = 128


@dataclass(frozen=True)
class RavdessOptions:
    """Sizes of the features of a clip."""

    num_frames: Annotated[int, Bounds(1, 1000)] = 1
    """RGB frames per clip, evenly spaced; --augment draws among them."""
    height: Annotated[int, Bounds(1, 4096)] = 256
    """Frame height in pixels; pictures are scaled to cover the frame and cropped."""
    width: Annotated[int, Bounds(1, 4096)] = 512
    """Frame width in pixels."""
    sample_rate: Annotated[int, Bounds(1, 192_000)] = 22_050
    """Sampling rate of the sound in Hz."""
    num_mfcc: Annotated[int, Bounds(1, NUM_MEL_BANDS)] = 40
    """Mel-frequency cepstral coefficients (MFCC)."""
    mfcc_frames: Annotated[int, Bounds(1, 100_000)] = 256
    """Time steps of the MFCC; shorter sound ends in silence, longer is cut."""
    fft_size: Annotated[int, Bounds(1, 1_000_000)] = 2048
    """Fourier window length in samples."""
    hop: Annotated[int, Bounds(1, 1_000_000)] = 512
    """Samples from one Fourier window to the next."""


@dataclass(frozen=True)
class RavdessFeatures(RavdessOptions):
    """Sizes of the features that are computed from a RAVDESS clip.

    Raises:
        InputError: A number is out of range.
    """

    def __post_init__(self) -> None:
        check_fields(self)

    @property
    def seconds(self) -> float:
        """Length of the stretch of a clip that the features describe, rounded up to a whole hop."""
        return self.mfcc_frames * self.hop / self.sample_rate

    @property
    def shapes(self) -> dict[str, tuple[int, ...]]:
        """Shapes of one clip's arrays: MFCC (num_mfcc, mfcc_frames) and frames (F, H, W, 3)."""
        return {
            "mfcc": (self.num_mfcc, self.mfcc_frames),
            "frames": (self.num_frames, self.height, self.width, 3),
        }


@dataclass(frozen=True)
class VggsoundOptions:
    """Sizes of a clip and of a shard."""

    num_frames: Annotated[int, Bounds(1, 100)] = 32
    """RGB frames per clip, evenly spaced."""
    size: Annotated[int, Bounds(8, 4096)] = 256
    """Width and height of frames in pixels, after scaling and centre crop."""
    quality: Annotated[int, Bounds(1, 95)] = 90
    """JPEG quality, 1 to 95."""
    seconds: Annotated[float, Bounds(VGGSOUND_LEAST / VGGSOUND_RATE, 600)] = 10.0
    """Sound length in seconds (16 kHz); longer is cut, shorter padded."""
    clips_per_shard: Annotated[int, Bounds(1, 100_000)] = 128
    """Annotated clips per tar file, usable or not."""


@dataclass(frozen=True)
class VggsoundSizes(VggsoundOptions):
    """Sizes of a prepared VGGSound clip, and of a shard.

    Raises:
        InputError: A number is out of range.
    """

    def __post_init__(self) -> None:
        check_fields(self)

    @property
    def samples(self) -> int:
        """Number of sound samples."""
        return int(self.seconds * VGGSOUND_RATE)
