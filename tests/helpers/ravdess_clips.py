"""Clips in RAVDESS's official layout, with emotions that sound and look: partly in both, partly in one only.

Emotions 0 to 7 are three bits. The lowest is both heard (pitch) and seen (shade); the middle one is heard only
(a second tone); the highest is both heard (tremolo) and seen (where a disc stands). So of the decisive bits two are
general and one is the teacher's alone: the best student is right in every second clip.
"""

import zipfile
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from media import jpeg, write_mp4, write_wav
from mfh.tasks.ravdess.names import EMOTIONS

RATE = 48_000


def sound_of(emotion: int, actor: int, seconds: float, rng: np.random.Generator) -> NDArray[np.float32]:
    """(T,) at 48 kHz."""
    times = np.arange(int(seconds * RATE)) / RATE
    pitch = (220.0 if actor % 2 else 300.0) * (2.0 if emotion & 1 else 1.0) * rng.uniform(0.97, 1.03)
    sound = np.sin(2 * np.pi * pitch * times + rng.uniform(0, 6.28))
    if emotion & 2:
        sound = sound + np.sin(2 * np.pi * 3000 * times * rng.uniform(0.97, 1.03))
    if emotion & 4:
        sound = sound * (0.55 + 0.45 * np.sin(2 * np.pi * 6 * times))
    sound = 0.2 * sound + 0.02 * rng.standard_normal(len(times))
    return np.clip(sound, -0.99, 0.99).astype(np.float32)


def frames_of(
    emotion: int, actor: int, count: int, size: tuple[int, int], rng: np.random.Generator
) -> NDArray[np.uint8]:
    """(F, H, W, 3); a face that stands left or right, bright or dark, before an actor's own background."""
    height, width = size
    rows, columns = np.mgrid[:height, :width]
    background = np.array([60 + 5 * actor, 110, 150 - 4 * actor], dtype=np.float64)
    center = width * ((0.7 if emotion & 4 else 0.3) + rng.uniform(-0.03, 0.03))
    disc = (rows - height * rng.uniform(0.45, 0.55)) ** 2 + (columns - center) ** 2 < (height / 5) ** 2
    picture = np.broadcast_to(background, (height, width, 3)).copy()
    picture[disc] = 220 if emotion & 1 else 25
    frames = picture[None] + rng.normal(0, 6, (count, height, width, 3))
    return np.clip(frames, 0, 255).astype(np.uint8)


def write_clips(
    folder: Path,
    *,
    actors: int = 6,
    repetitions: int = 1,
    statements: int = 1,
    seconds: float = 0.8,
    size: tuple[int, int] = (72, 128),
    channels: tuple[int, ...] = (1,),
    separate: bool = False,
    seed: int = 0,
) -> list[Path]:
    """Folders Actor_XX with full-AV mp4 files, or with video-only mp4 and wav files.

    Args:
        folder: to write to.
        actors: their number.
        repetitions: of every statement.
        statements: of every emotion.
        seconds: of a clip.
        size: height and width of a picture.
        channels: 1 for speech, 2 for song.
        separate: picture and sound in two files.
        seed: of everything random.
    """
    made = []
    for actor in range(1, actors + 1):
        for channel in channels:
            for emotion in range(len(EMOTIONS) if channel == 1 else 6):
                for statement in range(1, statements + 1):
                    for repetition in range(1, repetitions + 1):
                        rng = np.random.default_rng([seed, actor, channel, emotion, statement, repetition])
                        name = f"{channel:02}-{emotion + 1:02}-01-{statement:02}-{repetition:02}-{actor:02}"
                        place = folder / f"Actor_{actor:02}"
                        place.mkdir(parents=True, exist_ok=True)
                        frames = frames_of(emotion, actor, max(3, int(10 * seconds)), size, rng)
                        sound = sound_of(emotion, actor, seconds, rng)
                        if separate:
                            made += [place / f"02-{name}.mp4", place / f"03-{name}.wav"]
                            write_mp4(made[-2], frames, None, frame_rate=10)
                            write_wav(made[-1], sound)
                        else:
                            made.append(place / f"01-{name}.mp4")
                            write_mp4(made[-1], frames, sound, frame_rate=10, fast_start=True)
    return made


def zip_folder(folder: Path, archive: Path) -> Path:
    """The folder's files as an official archive holds them: Actor_XX/..."""
    with zipfile.ZipFile(archive, "w") as file:
        for path in sorted(folder.rglob("*.*")):
            file.write(path, path.relative_to(folder))
    return archive


def write_features(folder: Path) -> Path:
    """The authors' pre-processed data: one clip of each emotion in every split."""
    rng = np.random.default_rng(0)
    for part in ("aud_features", "vid_features", "data_file"):
        (folder / part).mkdir(parents=True)
    for number, table in enumerate(("spa_dl", "spa_val", "spa_test")):
        lines = []
        for label in range(8):
            name = f"clip{number}{label}"
            np.save(folder / "aud_features" / f"{name}.npy", rng.normal(-10, 80, (40, 32)).astype(np.float32))
            (folder / "vid_features" / f"{name}.jpg").write_bytes(jpeg(np.full((20, 40, 3), 30 * label, np.uint8)))
            lines.append(f"/home/them/data/aud_features/{name}.npy,vid_features/{name}.jpg,{label}\n")
        (folder / "data_file" / f"{table}.csv").write_text("audio,image,label\n" + "".join(lines))
    return folder
