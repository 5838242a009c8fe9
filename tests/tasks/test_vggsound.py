"""VGGSound prepared: shards read by number, the two networks, and the whole way from clips to a study."""

import json
import pickle
import re
import shutil
import threading
from pathlib import Path

import numpy as np
import pytest
import torch
from torch.utils.data import DataLoader, Subset

from mfh.cli.commands import main
from mfh.data.epochs import reading_batch, reads_the_same
from mfh.data.pairs import fetch, only_role
from mfh.errors import InputError
from mfh.files import file_digest, load_tensors, locked
from mfh.networks import cut
from mfh.saliency.scores import ChannelSaliency
from mfh.tasks.vggsound import shards, task
from mfh.tasks.vggsound.networks import (
    LAYER,
    GlobalAverage,
    Pixels,
    ResidualNetwork,
    Spectrogram,
    audio_network,
    from_torchvision,
    video_network,
)
from mfh.tasks.vggsound.prepare import Settings, prepare
from mfh.tasks.vggsound.shards import Clips, open_prepared
from processes import torchrun
from vggsound_clips import write_vggsound

SMALL = Settings(num_frames=4, size=32, seconds=1.0, clips_per_shard=10)


@pytest.fixture(scope="module")
def prepared(tmp_path_factory):
    folder = tmp_path_factory.mktemp("prepared")
    clips, table = write_vggsound(folder, faults=False)
    prepare(clips, folder / "out", csv=table, settings=SMALL, processes=2, quiet=True)
    return folder / "out"


def same(first, second):
    return all(torch.equal(torch.as_tensor(a), torch.as_tensor(b)) for a, b in zip(first, second, strict=True))


# --- reading ----------------------------------------------------------------------------------------------------------


def test_items(prepared):
    clips = Clips(open_prepared(prepared), "train")
    assert len(clips) == 48
    sound, video, label = clips[5]
    assert (sound.shape, sound.dtype) == ((16_000,), torch.float32)
    assert (video.shape, video.dtype) == ((4, 32, 32, 3), torch.uint8)
    assert sound.abs().max() == pytest.approx(1 / 1.1, abs=1e-4)
    assert isinstance(label, int)
    assert np.bincount(clips.targets).tolist() == [12, 12, 12, 12]
    # The pitch that is heard is that of the class; labels are in the order of their names.
    pitches = [3500.0, 1000.0, 2000.0, 500.0]
    for index in range(0, 48, 7):
        sound, _, label = clips[index]
        assert abs(float(torch.fft.rfft(sound).abs().argmax()) - pitches[label]) < 5
    with pytest.raises(IndexError):
        clips[48]


def test_fewer_frames_are_evenly_spaced(prepared):
    opened = open_prepared(prepared)
    whole = Clips(opened, "val")[3][1]
    assert torch.equal(Clips(opened, "val", num_frames=2)[3][1], whole[[1, 3]])
    assert torch.equal(Clips(opened, "val", num_frames=1)[3][1], whole[[2]])
    for wrong in (0, 5):
        with pytest.raises(InputError, match=f"num_frames is {wrong}; choose 1 to 4, the number of prepared frames"):
            Clips(opened, "val", num_frames=wrong)


def test_only_one_role(prepared):
    clips = Clips(open_prepared(prepared), "val", num_frames=2)
    sound, video, label = clips[1]
    heard, seen = only_role(clips, "teacher")[1], only_role(Subset(clips, [3, 1]), "student")[1]
    assert same(heard, (sound, torch.empty(0, dtype=torch.uint8), label))
    assert same(seen, (torch.empty(0), video, label))
    assert fetch(clips.only("teacher"), [0, 1]).student_input.shape == (2, 0)
    assert same(clips[1], (sound, video, label))


def test_augmented_items(prepared):
    opened = open_prepared(prepared)
    plain, varied = Clips(opened, "train"), Clips(opened, "train", augment=True, crop=0.5)
    assert reads_the_same(plain)
    assert not reads_the_same(varied)
    torch.manual_seed(0)
    items = [varied[0] for _ in range(20)]
    sound, video, _ = plain[0]
    assert all(item[0].shape == (8000,) for item in items)
    starts = {int((sound.unfold(0, 8000, 1)[:, :50] == item[0][:50]).all(1).nonzero()[0]) for item in items}
    assert len(starts) > 15
    mirrored = sum(not any(torch.equal(item[1][0], frame) for frame in video) for item in items)
    assert 3 <= mirrored <= 17
    for item in items:  # frames of the clip, all mirrored or none
        assert any(all(any(torch.equal(f, g) for g in v) for f in item[1]) for v in (video, video.flip(2)))
    torch.manual_seed(0)
    assert same(items[0], varied[0])
    with pytest.raises(InputError, match="crop is 0"):
        Clips(opened, "train", crop=0)


def test_windows_of_short_clips_are_the_same_in_both(tmp_path):
    """Clips of 1 s, prepared for 2 s: four frames cover the first half, the other half of the sound is silent."""
    clips, table = write_vggsound(tmp_path, train=1, val=1, test=1, faults=False)
    settings = Settings(num_frames=4, size=32, seconds=2.0, clips_per_shard=20)
    prepare(clips, tmp_path / "out", csv=table, settings=settings, processes=0, quiet=True)
    opened = open_prepared(tmp_path / "out")
    sound, video, _ = Clips(opened, "train")[0]
    varied = Clips(opened, "train", augment=True, crop=0.5)
    torch.manual_seed(0)
    starts = []
    for _ in range(20):
        heard, seen, _ = varied[0]
        starts.append(int((sound.unfold(0, 16_000, 1)[:, :50] == heard[:50]).all(1).nonzero()[0]))
        times = (starts[-1] + (np.arange(4) + 0.5) * 4000) / 16_000
        expected = video[(times * 4).astype(int).clip(0, 3)]
        assert torch.equal(seen, expected) or torch.equal(seen, expected.flip(2))
    assert max(starts) - min(starts) > 8000


def test_reading_processes_give_the_same(prepared):
    clips = Clips(open_prepared(prepared), "train")
    _ = clips[0]  # a shard is open already when the processes start
    alone = [clips[index] for index in range(len(clips))]
    together = [torch.cat(parts) for parts in zip(*DataLoader(clips, batch_size=8, num_workers=2), strict=True)]
    assert same(together, [torch.stack(list(map(torch.as_tensor, parts))) for parts in zip(*alone, strict=True)])
    assert same(pickle.loads(pickle.dumps(clips))[7], alone[7])  # as spawned processes get them


def test_large_items_are_read_a_few_at_a_time(prepared):
    clips = Clips(open_prepared(prepared), "train")
    assert reading_batch(clips) == 256

    class Large:
        def __len__(self):
            return 1000

        def __getitem__(self, index):
            return torch.empty(160_000), torch.empty(32, 256, 256, 3, dtype=torch.uint8), 0

    assert reading_batch(Large()) == 9
    assert reading_batch([]) == 256


@pytest.mark.parametrize("kind", ["FileLock", "SoftFileLock"])
def test_remote_shards_are_fetched_once(prepared, tmp_path, monkeypatch, kind):
    import filelock
    import fsspec

    monkeypatch.setattr(filelock, "FileLock", getattr(filelock, kind))  # the second where a disk knows no locks

    remote = fsspec.filesystem("memory")
    remote.put(str(prepared), "/bucket/vggsound", recursive=True)
    opened = open_prepared("memory://bucket/vggsound", tmp_path / "cache")
    clips, local = Clips(opened, "train"), Clips(open_prepared(prepared), "train")
    assert not list((tmp_path / "cache").rglob("*.tar"))
    assert same(clips[0], local[0])
    (kept,) = (tmp_path / "cache").rglob("*.tar")
    for path in remote.find("/bucket/vggsound"):
        if path.endswith(kept.name):
            remote.rm(path)  # it is not needed any more
    again = Clips(opened, "train")
    assert same(again[0], local[0])
    kept.write_bytes(b"half")  # as a crash of the machine may leave it
    with pytest.raises(InputError, match="cannot be fetched: FileNotFoundError"):
        Clips(opened, "train")[0]
    with pytest.raises(InputError, match=r"memory://nowhere/meta\.json cannot be fetched"):
        open_prepared("memory://nowhere", tmp_path / "cache")
    remote.rm("/bucket", recursive=True)


def bucket(prepared):
    import fsspec

    remote = fsspec.filesystem("memory")
    remote.put(str(prepared), "/bucket/vggsound", recursive=True)
    return remote


def test_a_shard_of_right_size_and_wrong_content_is_fetched_again(prepared, tmp_path, monkeypatch):
    remote = bucket(prepared)
    opened = open_prepared("memory://bucket/vggsound", tmp_path / "cache")
    good = Clips(opened, "train")[0]
    (kept,) = (tmp_path / "cache").rglob("*.tar")
    whole = kept.read_bytes()
    place = whole.index(b"RIFF") + 1000  # a flipped bit in the sound, which no other check sees
    kept.write_bytes(whole[:place] + bytes([whole[place] ^ 64]) + whole[place + 1 :])
    assert same(Clips(opened, "train")[0], good)
    assert kept.read_bytes() == whole
    digests = []
    monkeypatch.setattr(shards, "file_digest", lambda path: digests.append(path) or file_digest(path))
    assert same(Clips(opened, "train")[0], good)
    assert not digests  # a copy is not read twice
    kept.unlink()
    remote.pipe(f"/bucket/vggsound/{kept.name}", whole[:place] + b"?" + whole[place + 1 :])
    with pytest.raises(InputError, match="cannot be fetched: its content is not that of this preparation"):
        Clips(opened, "train")[0]
    remote.pipe(f"/bucket/vggsound/{kept.name}", whole + b"?")
    with pytest.raises(InputError, match=f"cannot be fetched: it is larger than the expected {len(whole)} bytes"):
        Clips(opened, "train")[0]
    assert not list((tmp_path / "cache").rglob("*.part"))
    remote.rm("/bucket", recursive=True)


def test_what_killed_downloads_left_is_removed_and_a_running_one_is_not(prepared, tmp_path):
    remote = bucket(prepared)
    open_prepared("memory://bucket/vggsound", tmp_path / "cache")
    (folder,) = (tmp_path / "cache").iterdir()
    for name in ("killed", "running"):
        (folder / f".{name}.tar.ab_c.part").write_bytes(b"half")
    with locked(folder / ".running.tar.lock"):
        open_prepared("memory://bucket/vggsound", tmp_path / "cache")
        assert [path.name for path in folder.glob(".*.part")] == [".running.tar.ab_c.part"]
    remote.rm("/bucket", recursive=True)


@pytest.mark.parametrize(("most", "said"), [(2**40, "has sent nothing for 0.2 seconds"), (10_000, "larger than")])
def test_a_server_that_never_answers_or_never_ends(tmp_path, monkeypatch, most, said):
    import fsspec

    ended = threading.Event()

    class Endless(fsspec.AbstractFileSystem):
        def get_file(self, rpath, lpath, callback=None, **_):
            try:
                while most < 2**40:
                    callback.relative_update(1000)
                ended.wait(60)
            finally:
                ended.set()

    fsspec.register_implementation("endless", Endless, clobber=True)
    monkeypatch.setattr(shards, "PATIENCE", 0.2)
    monkeypatch.setattr(shards, "MOST_TEXT", most)
    with pytest.raises(InputError, match=rf"endless://x/meta\.json cannot be fetched: .*{said}"):
        open_prepared("endless://x", tmp_path / "cache")
    ended.set()


# --- folders that cannot be used --------------------------------------------------------------------------------------


@pytest.fixture
def copied(prepared, tmp_path):
    return shutil.copytree(prepared, tmp_path / "copy")


def edit_meta(folder, **changes):
    meta = json.loads((folder / "meta.json").read_text())
    (folder / "meta.json").write_text(json.dumps({**meta, **changes}))


def test_damaged_folders(copied):
    shard = sorted(copied.glob("shard-train-*.tar"))[1]
    whole = shard.read_bytes()
    shard.write_bytes(whole[:-1024])
    with pytest.raises(InputError, match=r"has \d+ bytes; \d+ were expected: it is truncated or of another"):
        open_prepared(copied)
    shard.unlink()
    with pytest.raises(InputError, match=f"has no file {shard.name}"):
        open_prepared(copied)
    shard.write_bytes(whole)
    index = (copied / "index.csv").read_bytes()
    (copied / "index.csv").write_bytes(index.replace(b"train", b"test", 1))
    with pytest.raises(InputError, match=r"index\.csv is not the index of this preparation"):
        open_prepared(copied)
    (copied / "index.csv").unlink()
    with pytest.raises(InputError, match=r"has no file index\.csv"):
        open_prepared(copied)
    (copied / "index.csv").write_bytes(index)
    open_prepared(copied)
    edit_meta(copied, kind="ravdess")
    with pytest.raises(InputError, match="was prepared for 'ravdess'"):
        open_prepared(copied)
    (copied / "meta.json").unlink()
    with pytest.raises(InputError, match=r"has no meta\.json"):
        open_prepared(copied)


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"num_frames": 10**9}, "num_frames is 1000000000; choose 1 to 100"),
        ({"num_frames": "4"}, "num_frames '4'; a value of type int was expected"),
        ({"size": 10**6}, "size is 1000000"),
        ({"samples": 10**12}, "samples 1000000000000; 16000 were expected"),
        ({"seconds": None}, "seconds 'None'; a value of type float"),
    ],
)
def test_absurd_options(copied, changes, said):
    edit_meta(copied, options={**json.loads((copied / "meta.json").read_text())["options"], **changes})
    with pytest.raises(InputError, match=said):
        open_prepared(copied)


@pytest.mark.parametrize(
    "changes",
    [
        {"options": None},
        {"labels": {}},
        {"labels": [1]},
        {"shards": []},
        {"shards": {"shard-train-00000.tar": 3}},
        {"shards": {"shard-train-00000.tar": {"size": "3"}}},
        {"index_sha256": None},
    ],
)
def test_values_of_other_types(copied, changes):
    edit_meta(copied, **changes)
    with pytest.raises(InputError, match=r"meta\.json has (options|labels|shard|size|index)"):
        open_prepared(copied)


@pytest.mark.parametrize(
    ("old", "new"), [(r",train,shard", ",train,gone"), (r",\d+$", ",9000000000"), (r",0,\d+$", ",-1,5")]
)
def test_an_index_that_leads_out_of_its_shards(copied, old, new):
    text, changed = re.subn(old, new, (copied / "index.csv").read_text(), count=1, flags=re.MULTILINE)
    assert changed
    (copied / "index.csv").write_text(text)
    edit_meta(copied, index_sha256=file_digest(copied / "index.csv"))
    with pytest.raises(InputError, match=r"index\.csv line \d+ names no place in a shard"):
        open_prepared(copied)


def test_shards_of_another_preparation(copied):
    """Even one of the same size: what a clip is called is checked whenever it is read."""
    clips = Clips(open_prepared(copied), "train")
    first, second = sorted(copied.glob("shard-train-*.tar"))[:2]
    content = first.read_bytes()
    first.write_bytes(second.read_bytes()[: len(content)].ljust(len(content), b"\0"))
    index = next(i for i, key in enumerate(clips.keys) if clips.shards[clips._where[i, 0]] == first.name)
    with pytest.raises(InputError, match=r"does not hold clip .* as the index says"):
        clips[index]
    first.write_bytes(content.replace(b"\xff\xd8\xff", b"\0\0\0"))  # no JPEG begins any more
    with pytest.raises(InputError, match="no readable frame 0"):
        Clips(open_prepared(copied), "train")[index]
    first.write_bytes(content.replace(b"RIFF", b"JUNK"))
    with pytest.raises(InputError, match="0 sound samples, 16000 were expected"):
        Clips(open_prepared(copied), "train")[index]


def test_shard_names_lead_nowhere_else(copied):
    edit_meta(copied, shards={"../outside.tar": {"size": 1, "sha256": ""}})
    with pytest.raises(InputError, match=r"names a shard '\.\./outside\.tar'"):
        open_prepared(copied)


# --- networks ---------------------------------------------------------------------------------------------------------


def traced_shapes(network, inputs):
    """Logits, and what goes into and out of the tapped layer; shapes only, nothing is computed."""
    seen = {}

    def note(_module, given, output):
        seen.update(given=tuple(given[0].shape), output=tuple(output.shape))

    network.get_submodule(LAYER).register_forward_hook(note)
    return tuple(network.eval()(inputs).shape), seen["given"], seen["output"]


def num_parameters(network):
    return sum(parameter.numel() for parameter in network.parameters())


def test_the_published_networks_with_100_classes():
    """As docs/vggsound.md says."""
    with torch.device("meta"):
        audio, video = audio_network(100), video_network(100)
        assert audio.front(torch.zeros(2, 160_000)).shape == (2, 1, 513, 313)
        assert traced_shapes(audio, torch.zeros(2, 160_000)) == ((2, 100), (2, 512, 16, 10), (2, 512))
        clips = torch.zeros(2, 32, 256, 256, 3, dtype=torch.uint8)
        assert traced_shapes(video, clips) == ((2, 100), (2, 512, 1, 8, 8), (2, 512))
    # ResNet-18: 11 176 512 without its classifier and with three colours, of which one channel keeps a third of conv1.
    assert num_parameters(audio) == 11_176_512 - 2 * 64 * 7 * 7 + 513 * 100 == 11_221_540
    stem = 3 * 64 * 3 * 49 + 2 * 64
    stages, before = 0, 64
    for after in (64, 128, 256, 512):
        stages += 27 * (before * after + 5 * after * after) + 6 * 2 * after
        stages += (before * after + 2 * after) * (before != after)
        before = after
    assert num_parameters(video) == stem + stages + 513 * 100 == 52_022_052
    assert isinstance(video.get_submodule(LAYER), GlobalAverage)


@pytest.mark.parametrize("samples", [160_000, 100_000, 16_000])
def test_spectrogram(samples):
    sound = np.random.default_rng(0).standard_normal((2, samples)).astype(np.float32)
    padded = np.pad(sound, ((0, 0), (512, 512)), mode="reflect")
    window = np.sin(np.pi * np.arange(1024) / 1024) ** 2
    starts = range(0, samples + 1, 512)
    expected = np.stack([np.abs(np.fft.rfft(window * padded[:, s : s + 1024])) for s in starts], 2).astype(np.float32)
    assert expected.shape == (2, 513, 1 + samples // 512)
    found = Spectrogram(expected.shape[2], log=False)(torch.from_numpy(sound))
    assert found.shape == (2, 1, *expected.shape[1:])
    np.testing.assert_allclose(found[:, 0], expected, rtol=1e-3, atol=1e-3)
    logarithmic = Spectrogram(expected.shape[2], log=True)(torch.from_numpy(sound))
    torch.testing.assert_close(logarithmic, found.log1p())
    resized = Spectrogram(313, log=False)(torch.from_numpy(sound))
    assert resized.shape == (2, 1, 513, 313)
    expected = torch.nn.functional.interpolate(torch.from_numpy(expected)[:, None], (513, 313), mode="bilinear")
    torch.testing.assert_close(resized, expected, rtol=1e-3, atol=1e-3)


def test_pixels_are_normalised():
    video = torch.randint(0, 256, (2, 3, 4, 5, 3), dtype=torch.uint8)
    found = Pixels()(video)
    assert found.is_contiguous()
    expected = (video.double() / 255 - torch.tensor([0.485, 0.456, 0.406])) / torch.tensor([0.229, 0.224, 0.225])
    torch.testing.assert_close(found.double(), expected.movedim(-1, 1), rtol=1e-4, atol=1e-5)


def resnet18_names():
    """All of torchvision's resnet18, written out from its documentation."""
    norm = ("weight", "bias", "running_mean", "running_var", "num_batches_tracked")
    names = ["conv1.weight", *(f"bn1.{n}" for n in norm), "fc.weight", "fc.bias"]
    for stage in range(1, 5):
        for block in range(2):
            for part in (1, 2):
                names.append(f"layer{stage}.{block}.conv{part}.weight")
                names += [f"layer{stage}.{block}.bn{part}.{n}" for n in norm]
        if stage > 1:
            names.append(f"layer{stage}.0.downsample.0.weight")
            names += [f"layer{stage}.0.downsample.1.{n}" for n in norm]
    return names


def test_weights_from_torchvision():
    network = audio_network(10, 16_000).eval()
    own = network.state_dict()
    assert sorted(own) == sorted(resnet18_names())
    generator = torch.Generator().manual_seed(0)
    theirs = {name: tensor.clone() for name, tensor in own.items()}
    theirs["conv1.weight"] = torch.randn(64, 3, 7, 7, generator=generator)
    theirs["fc.weight"], theirs["fc.bias"] = torch.randn(1000, 512), torch.randn(1000)
    network.load_state_dict(from_torchvision(theirs, network))
    grey = torch.randn(1, 1, 30, 30, generator=generator)
    expected = torch.nn.functional.conv2d(grey.expand(1, 3, 30, 30), theirs["conv1.weight"], stride=2, padding=1)
    torch.testing.assert_close(network.conv1(grey), expected, rtol=1e-4, atol=1e-4)
    torch.testing.assert_close(network.fc.weight, own["fc.weight"])  # other classes: its own
    assert torch.equal(from_torchvision(theirs, audio_network(1000))["fc.weight"], theirs["fc.weight"])
    with pytest.raises(InputError, match=r"'layer1\.0\.bn1\.bias' is in one of them only"):
        from_torchvision({n: t for n, t in theirs.items() if n != "layer1.0.bn1.bias"}, network)
    with pytest.raises(InputError, match=r"layer2\.0\.conv1\.weight has shape"):
        from_torchvision(theirs | {"layer2.0.conv1.weight": torch.zeros(128, 64, 1, 1)}, network)


def test_networks_of_other_dimensions_are_refused():
    with pytest.raises(InputError, match="a kernel of 1 dimensions"):
        ResidualNetwork(torch.nn.Identity(), 1, 2, kernel=(3,), padding=(1,), blocks=(1,))


def test_networks_are_cut_before_the_classifier():
    for network, inputs in (
        (audio_network(3, 16_000, width=4), torch.randn(4, 16_000)),
        (video_network(3, width=4), torch.randint(0, 256, (4, 4, 32, 32, 3), dtype=torch.uint8)),
    ):
        network.eval()
        with torch.no_grad():
            split = cut.split(network, LAYER, inputs)
            passed = split(inputs)
            assert passed.activation.shape == (4, 32)
            torch.testing.assert_close(passed.logits, network(inputs))
            torch.testing.assert_close(
                split.tail(2 * passed.activation, passed.bypass), network.fc(2 * passed.activation)
            )


# --- the task ---------------------------------------------------------------------------------------------------------


def test_task(prepared):
    made = task(data=prepared)
    assert (len(made.train), len(made.val), len(made.test)) == (48, 16, 16)
    assert made.protocol.joint
    assert made.protocol.fill == "mean"
    assert "4 classes" in made.facts["description"]
    assert "48 train, 16 val, 16 test" in made.facts["description"]
    teacher = made.teacher()
    assert teacher.front.log
    assert teacher.front.shape == (513, 32)
    assert not made.train.augment
    varied = task(data=prepared, augment=True, num_frames=2)
    assert varied.train.augment
    assert not varied.val.augment
    assert not varied.test.augment
    assert varied.test[0][1].shape == (2, 32, 32, 3)


def test_paper_preset(prepared):
    made = task(data=prepared, preset="paper")
    protocol, recipe = made.protocol, made.recipe
    assert (protocol.ratio, protocol.fill, protocol.distance, protocol.joint) == (0.5, "zero", "l1", False)
    loss = protocol.loss
    assert (loss.label_weight, loss.teacher_weight, loss.temperature, loss.reduction) == (0, 1, 1, "batchmean")
    assert (recipe.epochs, recipe.batch_size, recipe.patience) == (50, 32, None)
    optimizer = recipe.optimizer([torch.nn.Parameter(torch.zeros(1))])
    assert type(optimizer) is torch.optim.AdamW
    assert (optimizer.defaults["lr"], optimizer.defaults["weight_decay"]) == (1e-3, 1e-5)
    scheduler, rates = recipe.scheduler(optimizer), []
    for _ in range(50):
        rates.append(optimizer.param_groups[0]["lr"])
        optimizer.step()
        scheduler.step()
    assert rates == pytest.approx([1e-3] * 25 + [1e-4] * 25)
    assert not made.teacher().front.log


def test_task_needs_a_prepared_folder(tmp_path, capsys):
    with pytest.raises(InputError, match="needs --data FOLDER, made by: mfh prepare vggsound"):
        task()
    with pytest.raises(InputError, match="is no folder"):
        task(data=tmp_path / "gone")
    with pytest.raises(SystemExit):
        main(["pretrain", "vggsound", "--data", str(tmp_path), "--out", str(tmp_path / "run"), "--quiet"])
    assert "has no meta.json; make it with: mfh prepare vggsound" in capsys.readouterr().err


def test_unknown_preset(prepared):
    with pytest.raises(InputError, match="preset is 'fast'; task vggsound knows 'paper'"):
        task(data=prepared, preset="fast")


# --- all the way ------------------------------------------------------------------------------------------------------

TINY = """
from mfh.tasks.vggsound import task as full

def task(data=None, preset=None, augment=False):
    return full(data, preset, augment, num_frames=2, width=4, num_workers=0)
"""


def test_every_step_and_a_study(prepared, tmp_path, monkeypatch, capsys):
    """The published order: both networks, saliency, distillation; then a study, whose teacher learns something."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / "tiny_vggsound.py").write_text(TINY)
    common = ["tiny_vggsound.py", "--data", str(prepared), "--preset", "paper", "--out", "run", "--quiet"]
    common += ["--epochs", "6", "--batch-size", "8"]
    for modality in ("teacher", "student"):
        main(["pretrain", *common, "--modality", modality])
    main(["saliency", *common])
    printed = capsys.readouterr().out
    assert "32 channels of layer avgpool, 48 pairs, permutations: exact" in printed
    main(["distill", *common, "--arm", "general", "--ratio", "0.5"])
    assert "general-distance-0.5-avgpool: validation accuracy" in capsys.readouterr().out
    main(["study", *common, "--arms", "no-kd", "aligned", "general", "random", "--num-seeds", "1", "--processes", "1"])
    rows = [line.split(",") for line in (tmp_path / "run/results.csv").read_text().splitlines()[1:]]
    accuracy = {(row[0], row[5], row[6]): float(row[7]) for row in rows}
    assert {arm for arm, _, _ in accuracy} == {"no-kd", "aligned", "general", "random"}
    assert accuracy["aligned", "val", "teacher_accuracy"] > 0.5  # four classes: chance is 0.25
    assert (tmp_path / "run/report.html").exists()


def test_two_processes_take_the_steps_together(prepared, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "tiny_vggsound.py").write_text(TINY)
    common = ["tiny_vggsound.py", "--data", str(prepared), "--preset", "paper", "--epochs", "1", "--batch-size", "8"]
    for modality in ("teacher", "student"):
        main(["pretrain", *common, "--out", "one", "--quiet", "--modality", modality])
    given = [f"--{role}-checkpoint=one/seed-0/{role}.safetensors" for role in ("teacher", "student")]
    main(["saliency", *common, *given, "--out", "alone", "--quiet"])

    def together(*words):
        code, said = torchrun("-m", "mfh", *words, *common, "--out", "two", folder=tmp_path)
        assert code == 0, said
        assert "training on 2 processes (Gloo)" in said

    together("saliency", *given)
    one, two = (ChannelSaliency.load(f"{out}/seed-0/saliency-distance.safetensors") for out in ("alone", "two"))
    np.testing.assert_allclose(two.scores, one.scores, atol=1e-5 * np.abs(one.scores).max())
    together("distill", *given, "--arm", "general")
    together("pretrain")
    steps = [
        load_tensors(Path(out, "seed-0/teacher.safetensors"), "network")[1]["history"][-1]["steps"]
        for out in ("one", "two")
    ]
    assert steps == [6, 3]  # 48 clips in batches of 8
