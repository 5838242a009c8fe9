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
    """Options of `mfh prepare ravdess`: sizes of the features that are computed from a clip."""

    num_frames: Annotated[int, Bounds(1, 1000)] = 1
    """Number of RGB frames per clip, evenly spaced; with more than one, --augment draws among them."""
    height: Annotated[int, Bounds(1, 4096)] = 256
    """Frame height in pixels; pictures are scaled until they cover the frame, and cropped evenly."""
    width: Annotated[int, Bounds(1, 4096)] = 512
    """Frame width in pixels."""
    sample_rate: Annotated[int, Bounds(1, 192_000)] = 22_050
    """Sampling rate that sound is resampled to, in Hz."""
    num_mfcc: Annotated[int, Bounds(1, NUM_MEL_BANDS)] = 40
    """Number of mel-frequency cepstral coefficients (MFCC)."""
    mfcc_frames: Annotated[int, Bounds(1, 100_000)] = 256
    """Number of time steps of the MFCC; shorter sound ends in silence, longer sound is cut."""
    fft_size: Annotated[int, Bounds(1, 1_000_000)] = 2048
    """Window length of the MFCC's short-time Fourier transform, in samples."""
    hop: Annotated[int, Bounds(1, 1_000_000)] = 512
    """Hop length of the MFCC's short-time Fourier transform, in samples."""


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
    """Options of `mfh prepare vggsound`: sizes of a prepared clip, and of a shard."""

    num_frames: Annotated[int, Bounds(1, 100)] = 32
    """Number of RGB frames per clip, evenly spaced over the clip."""
    size: Annotated[int, Bounds(8, 4096)] = 256
    """Width and height in pixels that frames are scaled and centre-cropped to."""
    quality: Annotated[int, Bounds(1, 95)] = 90
    """JPEG quality of the frames, 1 to 95."""
    seconds: Annotated[float, Bounds(VGGSOUND_LEAST / VGGSOUND_RATE, 600)] = 10.0
    """Length of the sound in seconds, at 16 kHz; longer sound is cut, shorter sound is padded."""
    clips_per_shard: Annotated[int, Bounds(1, 100_000)] = 128
    """Number of annotated clips in each tar file, usable or not."""


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
