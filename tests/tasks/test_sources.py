"""What is found in folders and archives, and what is named because it cannot be read."""

import io
import os
import tarfile
import zipfile
from pathlib import Path

import pytest

from mfh.tasks import sources
from mfh.tasks.sources import Unusable, media_files, stamped


def found(source):
    """(content by name, reasons by name)"""
    contents, reasons = {}, {}
    for file in media_files(source):
        name = str(file).removeprefix(f"{source}/")
        if isinstance(file, Unusable):
            reasons[name] = file.reason
        else:
            with file.open() as opened:
                contents[name] = opened.read()
    return contents, reasons


def zipped(members, compression=zipfile.ZIP_STORED):
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w", compression) as archive:
        for name, content in members.items():
            archive.writestr(name, content)
    return buffer.getvalue()


def tarred(members):
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w") as archive:
        for name, content in members.items():
            entry = tarfile.TarInfo(name)
            entry.size = len(content)
            archive.addfile(entry, io.BytesIO(content))
    return buffer.getvalue()


def test_links_pipes_devices_and_strange_names(tmp_path, monkeypatch):
    source, outside = tmp_path / "in", tmp_path / "outside"
    (source / "deep" / "er").mkdir(parents=True)
    outside.mkdir()
    (outside / "clip").write_text("linked")
    (source / "linked").symlink_to(outside)
    (source / "linked twice").symlink_to(outside)
    (source / "deep" / "er" / "up").symlink_to(source)
    (source / "gone").symlink_to(tmp_path / "nowhere")
    (source / "self").symlink_to(source / "self")
    (source / "zeros").symlink_to("/dev/zero")
    os.mkfifo(source / "pipe")
    os.mkfifo(source / "pipe.tar")
    (source / ".hidden").write_text("x")
    odd = Path(os.fsdecode(os.fsencode(source) + b"/\xff\n=1"))
    odd.write_text("odd")
    (source / "locked").mkdir()
    scan = os.scandir

    def refused(folder):
        if Path(folder).name == "locked":
            raise PermissionError(13, "Permission denied")
        return scan(folder)

    monkeypatch.setattr(os, "scandir", refused)
    contents, reasons = found(source)
    assert contents == {"linked/clip": b"linked", str(odd).removeprefix(f"{source}/"): b"odd"}
    assert reasons == {
        "gone": "dangling link",
        "self": "dangling link",
        "zeros": "not a regular file",
        "pipe": "not a regular file",
        "pipe.tar": "not a regular file",
        "locked": "unreadable",
    }


def test_a_file_that_is_gone_before_it_is_stamped(tmp_path):
    (tmp_path / "a").write_text("x")
    (file,) = media_files(tmp_path)
    assert stamped(file).stamp.startswith("1 ")
    (tmp_path / "a").unlink()
    assert stamped(file) == Unusable(tmp_path / "a", reason="unreadable")


def test_archives_in_archives_are_opened_or_named(tmp_path):
    inner = {"a/one.wav": b"1" * 999, "two.wav": b"2"}
    packed = zipped({"packed.wav": b"3" * 999}, zipfile.ZIP_DEFLATED)
    (tmp_path / "outer.zip").write_bytes(
        zipped(
            {"x.ZIP": zipped(inner), "y.tar": tarred(inner), "z.zip": packed, "deep.zip": zipped({"in.zip": packed})}
        )
    )
    (tmp_path / "outer.tar").write_bytes(tarred({"x.zip": zipped(inner), "y.tar": tarred(inner), "w.tar.gz": b"?"}))
    (tmp_path / "small.zip").write_bytes(zipped({"inner.zip": zipped(inner)}, zipfile.ZIP_DEFLATED))
    (tmp_path / "other.7z").write_bytes(b"?")
    contents, reasons = found(tmp_path)
    opened = ("outer.zip/x.ZIP", "outer.zip/y.tar", "outer.tar/x.zip", "outer.tar/y.tar")
    expected = {f"{archive}/{name}": content for archive in opened for name, content in inner.items()}
    assert contents == expected | {"outer.zip/z.zip/packed.wav": b"3" * 999}
    assert reasons == dict.fromkeys(
        ("outer.zip/deep.zip/in.zip", "outer.tar/w.tar.gz", "small.zip/inner.zip", "other.7z"), "archive not opened"
    )


def test_a_member_that_is_far_larger_than_a_clip_is_not_read(tmp_path, monkeypatch):
    monkeypatch.setattr(sources, "MOST_MEMBER", 10_000)
    bomb = {"clip.mp4": bytes(100_000), "fine.mp4": bytes(10_000)}
    (tmp_path / "a.zip").write_bytes(zipped(bomb, zipfile.ZIP_DEFLATED))
    (tmp_path / "b.tar").write_bytes(tarred(bomb))
    (tmp_path / "c.zip").write_bytes(zipped({"inner.zip": zipped(bomb, zipfile.ZIP_DEFLATED)}))
    contents, reasons = found(tmp_path)
    assert set(contents) == {"a.zip/fine.mp4", "b.tar/fine.mp4", "c.zip/inner.zip/fine.mp4"}
    assert reasons == dict.fromkeys(("a.zip/clip.mp4", "b.tar/clip.mp4", "c.zip/inner.zip/clip.mp4"), "too large")


def header(name, size, kind):
    entry = tarfile.TarInfo(name)
    entry.size, entry.type = size, kind
    return entry.tobuf(tarfile.GNU_FORMAT)


@pytest.mark.parametrize("kind", [tarfile.XHDTYPE, tarfile.GNUTYPE_LONGNAME, tarfile.XGLTYPE])
def test_a_tar_with_a_header_of_gigabytes_is_left_at_once(tmp_path, kind):
    path = tmp_path / "large.tar"
    whole = tarred({"good.mp4": b"good"})[:1024]
    path.write_bytes(whole + header("long", 3 * 2**30, kind))
    os.truncate(path, 4 * 2**30)  # sparse: it takes no space
    assert found(tmp_path) == ({"large.tar/good.mp4": b"good"}, {"large.tar": "unreadable"})


def test_a_tar_that_leads_back_to_its_beginning_ends(tmp_path):
    (tmp_path / "loop.tar").write_bytes(header("a.mp4", -512, tarfile.REGTYPE) + bytes(1024))
    assert found(tmp_path)[1] == {"loop.tar": "unreadable"}


def test_damaged_archives_and_links_in_a_tar(tmp_path):
    (tmp_path / "text.zip").write_bytes(b"PK\x03\x04 no archive")
    (tmp_path / "text.tar").write_bytes(b"no archive")
    (tmp_path / "inner.zip").write_bytes(zipped({"text.zip": b"no archive", "fine.wav": b"fine"}))
    with tarfile.open(tmp_path / "links.tar", "w") as archive:
        link = tarfile.TarInfo("link.mp4")
        link.type, link.linkname = tarfile.SYMTYPE, "/etc/passwd"
        archive.addfile(link)
    assert found(tmp_path) == (
        {"inner.zip/fine.wav": b"fine"},
        {
            "text.zip": "unreadable",
            "text.tar": "unreadable",
            "inner.zip/text.zip": "unreadable",
            "links.tar/link.mp4": "not a regular file",
        },
    )
