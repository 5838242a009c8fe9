"""Every kind of damage that a folder of clips can have, in the layout of any data set.

A damaged clip is a file under a name of the data set that cannot be used; the reason is what skipped.csv must say.
"""

import io
import os
import tarfile
import zipfile
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np

from media import write_mp4

Damage = tuple[str, Callable[[Path], object]]


def damages(whole: bytes) -> Iterator[Damage]:
    """(reason, what writes the damaged file to a path).

    Args:
        whole: Content of a good clip in mp4.
    """
    rng = np.random.default_rng(0)
    frames = rng.integers(0, 255, (4, 48, 64, 3), dtype=np.uint8)
    noise = (0.2 * rng.standard_normal(12_000)).astype(np.float32)
    yield "truncated", lambda path: path.write_bytes(whole[: len(whole) // 2])
    yield "truncated", lambda path: path.write_bytes(whole[:-1])
    yield "unreadable", lambda path: path.write_bytes(b"")
    yield "unreadable", lambda path: path.write_bytes(rng.bytes(4000))
    yield "unreadable", lambda path: path.write_text("<html>404 Not Found</html>")
    yield "no sound", lambda path: write_mp4(path, frames, None, frame_rate=10)
    yield "no picture", lambda path: write_mp4(path, None, noise)
    yield "silent", lambda path: write_mp4(path, frames, 0 * noise, frame_rate=10)
    yield "dangling link", lambda path: path.symlink_to(path.with_name("nowhere"))
    yield "dangling link", lambda path: path.symlink_to(path)
    yield "not a regular file", os.mkfifo
    yield "not a regular file", lambda path: path.symlink_to("/dev/zero")


def add_rubbish(folder: Path) -> dict[str, str]:
    """What belongs to no clip, or holds none: end of the name -> reason."""
    folder.mkdir(parents=True, exist_ok=True)
    made = {"pipe.tar": "not a regular file", "gone.txt": "dangling link", "=2+5.tar": "unreadable"}
    os.mkfifo(folder / "pipe.tar")
    (folder / "gone.txt").symlink_to("/nowhere")
    (folder / "back").symlink_to(folder.parent)  # a loop
    (folder / "=2+5.tar").write_bytes(b"no archive")
    (folder / "some.zip").write_bytes(b"PK\x03\x04 no archive")
    (folder / "clips.tar.gz").write_bytes(b"?")
    made |= {"some.zip": "unreadable", "clips.tar.gz": "archive not opened"}
    entry = tarfile.TarInfo("long")
    entry.size, entry.type = 3 * 2**30, tarfile.XHDTYPE
    (folder / "large.tar").write_bytes(entry.tobuf())
    os.truncate(folder / "large.tar", 4 * 2**30)  # sparse: it takes no space
    made["large.tar"] = "unreadable"
    with zipfile.ZipFile(folder / "packed.zip", "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("inner.zip", bytes(1000))
    made["packed.zip/inner.zip"] = "archive not opened"
    Path(os.fsdecode(os.fsencode(folder) + b'/\xff\r\n,".txt')).write_text("a strange name")
    return made


def pack_twice(paths: list[Path], archive: Path) -> None:
    """Move files into a zip archive inside a zip archive, as a page of downloads comes."""
    inner = io.BytesIO()
    with zipfile.ZipFile(inner, "w", zipfile.ZIP_DEFLATED) as file:
        for path in paths:
            file.write(path, path.name)
            path.unlink()
    with zipfile.ZipFile(archive, "w") as file:
        file.writestr("inner.zip", inner.getvalue())


def interrupt_every(count: int, function: Callable[..., object]) -> Callable[..., object]:
    """The function, but every so many calls are interrupted before they begin."""
    calls = 0

    def interrupted(*arguments: object, **options: object) -> object:
        nonlocal calls
        calls += 1
        if calls % count == 0:
            raise KeyboardInterrupt
        return function(*arguments, **options)

    return interrupted
