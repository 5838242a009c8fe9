"""Decoding against independent computations, and every kind of broken file."""

import io
import zipfile

import av
import librosa
import numpy as np
import pytest
from PIL import Image

from media import jpeg, tone, write_mp4, write_wav
from mfh.tasks.media import MediaError, MediaFile, cover, read_audio, read_frames, read_picture

RNG = np.random.default_rng(0)


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """One clip as MP4 (index last and first), its sound as WAV, and pieces of them."""
    place = tmp_path_factory.mktemp("media")
    shades = np.linspace(10, 240, 30).astype(np.uint8)
    frames = np.stack([np.full((48, 96, 3), shade) for shade in shades])
    sound = tone([440, 1000], 1.0, RNG)
    write_mp4(place / "late.mp4", frames, sound)
    write_mp4(place / "fast.mp4", frames, sound, fast_start=True)
    write_mp4(place / "picture.mp4", frames, None)
    write_mp4(place / "sound.mp4", None, sound)
    write_wav(place / "sound.wav", sound)
    write_wav(place / "stereo.wav", np.stack([sound, 0.5 * sound]))
    write_wav(place / "silent.wav", 0 * sound)
    write_mp4(place / "silent.mp4", frames, 0 * sound)
    return place


def content(folder, name, share=1.0):
    data = (folder / name).read_bytes()
    return io.BytesIO(data[: int(share * len(data))])


def test_frames_are_evenly_spaced_and_the_single_one_is_the_middle(folder):
    with av.open(str(folder / "fast.mp4")) as container:
        every = [frame.to_ndarray(format="rgb24") for frame in container.decode(video=0)]
    assert len(every) == 30
    assert every[0].mean() < every[15].mean() < every[29].mean()
    same_size = cover(48, 96)
    np.testing.assert_array_equal(read_frames(content(folder, "fast.mp4"), 1, same_size)[0], every[15])
    five = read_frames(content(folder, "late.mp4"), 5, same_size)
    np.testing.assert_array_equal(five, [every[place] for place in (3, 9, 15, 21, 27)])
    assert read_frames(content(folder, "fast.mp4"), 70, same_size).shape == (70, 48, 96, 3)


def test_clips_cut_without_encoding_anew_have_fewer_frames_than_packets(tmp_path):
    shades = np.arange(20, 170, dtype=np.uint8)
    write_mp4(tmp_path / "whole.mp4", np.stack([np.full((64, 64, 3), shade) for shade in shades]), None)
    with av.open(str(tmp_path / "whole.mp4")) as whole, av.open(str(tmp_path / "cut.mp4"), "w") as cut:
        stream = whole.streams.video[0]
        copied = cut.add_stream_from_template(stream)
        offset = int(40 / 30 / stream.time_base)  # the first 40 frames come before the beginning
        for packet in whole.demux(stream):
            if packet.dts is not None:
                packet.pts, packet.dts, packet.stream = packet.pts - offset, packet.dts - offset, copied
                cut.mux(packet)
    with av.open(str(tmp_path / "cut.mp4")) as container:
        packets = sum(1 for packet in container.demux(video=0) if packet.size)
        container.seek(0)
        shown = [frame.to_ndarray(format="rgb24").mean() for frame in container.decode(video=0)]
    assert len(shown) < packets
    for count in (1, 4, 32):
        with (tmp_path / "cut.mp4").open("rb") as file:
            found = read_frames(file, count, cover(64, 64)).mean((1, 2, 3))
        expected = [shown[int((i + 0.5) * len(shown) / count)] for i in range(count)]
        np.testing.assert_allclose(found, expected, atol=0.01)


def test_pictures_are_scaled_to_cover_and_cropped_evenly():
    picture = np.zeros((100, 400, 3), np.uint8)
    picture[:, 100:300] = 200  # what remains of 100 x 400 when 1:2 is cut out of its middle
    fitted = np.asarray(cover(50, 100)(Image.fromarray(picture)))
    assert fitted.shape == (50, 100, 3)
    assert fitted[:, 2:-2].min() == 200
    decoded = read_picture(io.BytesIO(jpeg(np.full((64, 64, 3), 90, np.uint8))), cover(32, 32))
    assert abs(int(decoded.mean()) - 90) <= 1


def test_pictures_are_turned_as_their_camera_says():
    left, buffer = np.zeros((64, 64, 3), np.uint8), io.BytesIO()
    left[:, :32] = 200
    exif = Image.Exif()
    exif[274] = 6  # to be turned clockwise
    Image.fromarray(left).save(buffer, "JPEG", exif=exif)
    above = read_picture(buffer, cover(64, 64))
    assert above[:28].min() > 150
    assert above[36:].max() < 50


@pytest.mark.filterwarnings("ignore::DeprecationWarning")  # of what librosa.load imports
def test_sound_is_what_librosa_reads(folder):
    for name in ("sound.wav", "stereo.wav"):
        expected, _ = librosa.load(folder / name, sr=22_050)
        found = read_audio(content(folder, name), 22_050)
        assert found.shape == expected.shape
        np.testing.assert_allclose(found, expected, atol=1e-6)
    from_mp4 = read_audio(content(folder, "fast.mp4"), 48_000)
    original = read_audio(content(folder, "sound.wav"), 48_000)
    lags = range(0, 3000, 8)  # an AAC encoder begins with silence
    best = max(np.corrcoef(from_mp4[lag : lag + 40_000], original[:40_000])[0, 1] for lag in lags)
    assert best > 0.8


@pytest.mark.parametrize(
    ("name", "share", "picture", "sound"),
    [
        ("fast.mp4", 1.0, None, None),
        ("fast.mp4", 0.5, "truncated", "truncated"),
        ("late.mp4", 0.5, "truncated", "truncated"),
        ("sound.wav", 0.5, "truncated", "truncated"),
        ("sound.wav", 0.0, "unreadable", "unreadable"),
        ("picture.mp4", 1.0, None, "no sound"),
        ("sound.mp4", 1.0, "no picture", None),
        ("sound.wav", 1.0, "no picture", None),
        ("silent.wav", 1.0, "no picture", "silent"),
        ("silent.mp4", 1.0, None, "silent"),
    ],
)
def test_what_is_wrong_with_a_file(folder, name, share, picture, sound):
    for read, reason in (
        (lambda file: read_frames(file, 1, cover(16, 16)), picture),
        (lambda file: read_audio(file, 16_000), sound),
    ):
        if reason is None:
            assert len(read(content(folder, name, share)))
        else:
            with pytest.raises(MediaError, match=reason):
                read(content(folder, name, share))


@pytest.mark.parametrize("junk", [b"no media at all" * 100, RNG.bytes(5000), b"\0" * 5000])
def test_junk_is_unreadable(junk):
    for read in (lambda file: read_frames(file, 1, cover(8, 8)), lambda file: read_audio(file, 16_000)):
        with pytest.raises(MediaError, match=r"unreadable|no sound|no picture"):
            read(io.BytesIO(junk))
    with pytest.raises(MediaError, match="unreadable"):
        read_picture(io.BytesIO(junk), cover(8, 8))


def test_overwritten_bytes_are_unreadable(folder):
    data = bytearray((folder / "fast.mp4").read_bytes())
    middle = len(data) // 2
    data[middle - 1500 : middle + 1500] = RNG.bytes(3000)
    with pytest.raises(MediaError, match="unreadable"):
        read_frames(io.BytesIO(data), 30, cover(8, 8))


def test_members_of_archives_are_read_in_place(folder, tmp_path):
    path = tmp_path / "clips.zip"
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
        archive.write(folder / "sound.wav", "Actor_01/sound.wav")
    file = MediaFile(path, "Actor_01/sound.wav")
    assert (file.name, str(file)) == ("sound.wav", f"{path}/Actor_01/sound.wav")
    with file.open() as packed:
        assert packed.read() == (folder / "sound.wav").read_bytes()
    with pytest.raises(MediaError, match="unreadable"), MediaFile(tmp_path / "gone.wav").open():
        pass
    damaged = bytearray(path.read_bytes())
    damaged[200:260] = bytes(60)
    path.write_bytes(damaged)
    with pytest.raises(MediaError, match="unreadable"), file.open():
        pass
