"""Names of RAVDESS files: MM-VC-EE-II-SS-RR-AA.ext (Livingstone & Russo 2018, Zenodo 1188976)."""

import re
from dataclasses import dataclass

#: Emotions in the order of their codes 01 to 08. The class of an emotion is its place in this list.
EMOTIONS = ("neutral", "calm", "happy", "sad", "angry", "fearful", "disgust", "surprised")
CHANNELS = ("speech", "song")
INTENSITIES = ("normal", "strong")
FULL, PICTURE, SOUND = 1, 2, 3

_NAME = re.compile(r"(\d\d)-(\d\d)-(\d\d)-(\d\d)-(\d\d)-(\d\d)-(\d\d)")
_MOST = (3, len(CHANNELS), len(EMOTIONS), len(INTENSITIES), 2, 2, 24)


@dataclass(frozen=True)
class FileName:
    """The parts of a file's name.

    Args:
        modality: `FULL` (sound and picture), `PICTURE` or `SOUND`.
        clip: The name without modality and ending, which all files of one recording share.
        channel: "speech" or "song".
        emotion: One of `EMOTIONS`.
        intensity: "normal" or "strong".
        statement: 1 or 2.
        repetition: 1 or 2.
        actor: 1 to 24. Odd numbers are male.
    """

    modality: int
    clip: str
    channel: str
    emotion: str
    intensity: str
    statement: int
    repetition: int
    actor: int


def parse(name: str) -> FileName | None:
    """The parts of a file's name. None if RAVDESS has no file of this name.

    Args:
        name: Name without folders, with or without ending. An ending must fit the modality.

    Example:
        >>> parse("01-01-06-01-02-01-12.mp4").emotion
        'fearful'
        >>> parse("01-01-01-02-01-01-05.mp4") is None  # there is no strong neutral
        True
    """
    stem, _, ending = name.partition(".")
    match = _NAME.fullmatch(stem)
    if match is None:
        return None
    codes = [int(code) for code in match.groups()]
    modality, channel, emotion, intensity, statement, repetition, actor = codes
    impossible = (
        any(not 1 <= code <= most for code, most in zip(codes, _MOST, strict=True))
        or (EMOTIONS[emotion - 1] == "neutral" and intensity == 2)
        or (CHANNELS[channel - 1] == "song" and emotion > 6)
        or (ending and ending.lower() != ("wav" if modality == SOUND else "mp4"))
    )
    if impossible:
        return None
    return FileName(
        modality,
        stem[3:],
        CHANNELS[channel - 1],
        EMOTIONS[emotion - 1],
        INTENSITIES[intensity - 1],
        statement,
        repetition,
        actor,
    )
