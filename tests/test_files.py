import json
import os
import pickle
import stat
import subprocess
import sys
from contextlib import suppress

import numpy as np
import pytest
import torch
from safetensors.torch import save_file

from mfh import ChannelMask, ChannelSaliency
from mfh.errors import InputError, close_names
from mfh.files import (
    EXECUTED,
    OwnFileError,
    atomic_write,
    claimed,
    file_digest,
    load_array,
    load_code,
    load_facts,
    load_tensors,
    locked,
    read_frame,
    read_json,
    read_table,
    refuse_edited,
    save_fields,
    save_tensors,
    write_json,
    write_table,
)


def mask():
    return ChannelMask("a", np.array([0.0, 1.0]), np.zeros(2), "f" * 32)


def saliency():
    return ChannelSaliency(
        scores=np.array([1.0, 2.0]),
        standard_error=np.zeros(2),
        baseline=1.0,
        means=np.zeros((2, 3)),
        layer="a",
        channel_dim=1,
        score="distance",
        distance="mse",
        permutations="exact",
        samples=4,
        fingerprint="f" * 32,
    )


def test_old_content_survives_a_crash(tmp_path):
    path = tmp_path / "new" / "file.txt"
    with atomic_write(path) as file:
        file.write("first")

    def crash():
        with atomic_write(path) as file:
            file.write("half of the sec")
            raise RuntimeError("crash")

    with pytest.raises(RuntimeError, match="crash"):
        crash()
    assert path.read_text() == "first"
    assert [p.name for p in path.parent.iterdir()] == ["file.txt"]
    with atomic_write(path, "wb") as file:
        file.write(b"\x00\xff")
    assert path.read_bytes() == b"\x00\xff"


def test_a_file_that_cannot_be_written_is_told_from_errors_of_other_code(tmp_path):
    (tmp_path / "file").touch()
    with pytest.raises(OwnFileError) as error, atomic_write(tmp_path / "file/below"):
        pass
    assert str(tmp_path) in str(error.value)
    assert str(pickle.loads(pickle.dumps(error.value))) == str(error.value)  # it may come from a worker process
    with pytest.raises(FileNotFoundError) as error, atomic_write(tmp_path / "own"):
        (tmp_path / "of the user").read_text()
    assert not isinstance(error.value, OwnFileError)
    (tmp_path / "taken").mkdir()
    with pytest.raises(OwnFileError) as error, atomic_write(tmp_path / "taken") as file:
        file.write("x")
    assert error.value.filename == str(tmp_path / "taken")
    with pytest.raises(OwnFileError), locked(tmp_path / "file/lock"):
        pass
    with locked(tmp_path / "lock"), pytest.raises(BlockingIOError), locked(tmp_path / "lock", wait=False):
        pass


@pytest.mark.parametrize("mode", ["w", "wb"])
def test_a_full_disk_is_an_error_of_the_file_that_is_written(tmp_path, mode):
    resource = pytest.importorskip("resource")
    signal = pytest.importorskip("signal")
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    before = signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    resource.setrlimit(resource.RLIMIT_FSIZE, (1000, limits[1]))
    try:
        with pytest.raises(OwnFileError) as error, atomic_write(tmp_path / "large", mode) as file:
            file.write("x" * 100_000 if mode == "w" else b"x" * 100_000)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
        signal.signal(signal.SIGXFSZ, before)
    assert error.value.filename == str(tmp_path / "large")
    assert not list(tmp_path.iterdir())


def test_permissions_are_those_of_any_new_file(tmp_path):
    before = os.umask(0o027)
    try:
        with atomic_write(tmp_path / "a"):
            pass
        assert stat.S_IMODE((tmp_path / "a").stat().st_mode) == 0o640
        assert os.umask(0o027) == 0o027
    finally:
        os.umask(before)


def test_json(tmp_path):
    write_json(tmp_path / "a.json", {"path": tmp_path, "umlaut": "ä", "n": 1})
    assert read_json(tmp_path / "a.json") == {"path": str(tmp_path), "umlaut": "ä", "n": 1}
    (tmp_path / "list.json").write_text("[1]")
    (tmp_path / "text.json").write_text("hello")
    (tmp_path / "bytes.json").write_bytes(b"\xff\xfe\x00")
    for name, match in [
        ("none.json", "no file .*none.json"),
        ("list.json", "holds a JSON list; an object was expected"),
        ("text.json", "not a readable JSON file"),
        ("bytes.json", "not a readable JSON file"),
        (".", "not a readable JSON file"),
    ]:
        with pytest.raises(InputError, match=match):
            read_json(tmp_path / name)


def test_tables_come_back_or_are_refused(tmp_path):
    path = tmp_path / "new" / "table.csv"
    rows = [{"a": 1, "b": 'x, "y"\nz\u2028'}, {"a": None, "b": ""}]
    write_table(path, ("a", "b"), rows)
    assert read_table(path, ("a", "b"), "call us") == [{"a": "1", "b": rows[0]["b"]}, {"a": "", "b": ""}]
    assert read_table(path, None, "call us") == read_table(path, ("b",), "call us", foreign=True)
    with pytest.raises(ValueError, match="c"):
        write_table(path, ("a", "b"), [{"a": 1, "c": 2}])
    whole = path.read_bytes()
    for content, match in [
        (b"", "no column 'a'"),
        (b"a\n1\n", "no column 'b'"),
        (b"b,a\n1,2\n", "columns b,a, not a,b"),
        (b"a,b,c\n1,2,3\n", "columns a,b,c, not a,b"),
        (b"a,b\n1,2\n\n1\n", "another number of fields in line 4"),
        (b"a,b\n1,2,3\n", "another number of fields in line 2"),
        (b"a,b\n1,23", "last line is cut"),
        (whole[:-1], "last line is cut"),
        (b'a,b\n1,"2', "not a readable CSV table"),
        (b"a,b\n\xff,2\n", "not a readable CSV table"),
    ]:
        path.write_bytes(content)
        with pytest.raises(InputError, match=f"{match}.*; call us$"):
            read_table(path, ("a", "b"), "call us")
    with pytest.raises(InputError, match=r"no file .*none\.csv; call us"):
        read_table(tmp_path / "none.csv", ("a",), "call us")
    path.write_bytes(b"\xef\xbb\xbfb,c,a\r\n1,2,3")  # as spreadsheets and people write it
    assert read_table(path, ("a", "b"), "call us", foreign=True) == [{"b": "1", "c": "2", "a": "3"}]
    with pytest.raises(InputError, match="no column 'd'"):
        read_table(path, ("a", "d"), "call us", foreign=True)


def test_text_that_a_spreadsheet_would_run_is_written_as_text_and_comes_back(tmp_path):
    path = tmp_path / "table.csv"
    texts = ["=1+1", "+a", "-abc_000007", "@x", "\tx", "\rx", "'=1", "''-x", "'fine", "a\rb", "a=b", "-1.5", "-inf", ""]
    rows = [{"number": -1.5, "arm": text} for text in texts]
    write_table(path, ("number", "arm"), rows)
    raw = path.read_bytes().decode().split("\n", 1)[1]
    assert raw.startswith("-1.5,'=1+1\n-1.5,'+a\n-1.5,'-abc_000007\n-1.5,'@x\n-1.5,'\tx\n-1.5,\"'\rx\"\n-1.5,''=1\n")
    assert "\n-1.5,-1.5\n" in raw
    read = read_table(path, ("number", "arm"), "call us")
    assert read == [{"number": "-1.5", "arm": text} for text in texts]
    frame = read_frame(path, ("number", "arm"))
    assert frame["arm"].fillna("").tolist() == texts
    assert set(frame["number"]) == {-1.5}
    write_table(path, ("arm",), [{"arm": os.fsdecode(b"\xff.mp4")}])  # a file name that is not UTF-8
    assert read_table(path, ("arm",), "call us") == [{"arm": "\\udcff.mp4"}]


@pytest.mark.parametrize("kind", ["pipe", "device", "folder", "large"])
@pytest.mark.parametrize(
    "read",
    [
        read_json,
        load_array,
        lambda path: read_table(path, None, "call us"),
        lambda path: read_frame(path, ()),
        lambda path: load_tensors(path, "mask"),
    ],
)
def test_readers_open_regular_files_of_sane_size_only(tmp_path, monkeypatch, read, kind):
    path = tmp_path / "file"
    if kind == "pipe":
        os.mkfifo(path)
    elif kind == "device":
        path.symlink_to("/dev/zero")
    elif kind == "folder":
        path.mkdir()
    else:
        monkeypatch.setattr("mfh.files.MOST_TEXT", 1000)
        path.write_bytes(b"x" * 1001)
    with pytest.raises(InputError, match="at most 1000|saved by" if kind == "large" else "a regular file was"):
        read(path)


@pytest.mark.parametrize("shape", [(2**40,), (2**62, 4), (2**61, 8), (10**30,), (-1,)])
def test_an_array_that_claims_more_than_its_file_holds(tmp_path, shape):
    header = f"{{'descr': '<f8', 'fortran_order': False, 'shape': {shape}, }}".ljust(117) + "\n"
    (tmp_path / "a.npy").write_bytes(b"\x93NUMPY\x01\x00v\x00" + header.encode() + bytes(64))
    with pytest.raises(InputError, match="not an array of numbers saved by"):
        load_array(tmp_path / "a.npy")


def test_arrays_are_read_and_anything_else_is_refused(tmp_path):
    for array in (np.arange(6.0).reshape(2, 3), np.zeros((0, 3)), np.array(5), np.asfortranarray(np.ones((2, 3)))):
        np.save(tmp_path / "a.npy", array)
        np.testing.assert_array_equal(load_array(tmp_path / "a.npy"), array)
    np.save(tmp_path / "text.npy", np.array(["a"]))
    np.save(tmp_path / "objects.npy", np.array([{}]), allow_pickle=True)
    np.savez(tmp_path / "many.npz", a=np.zeros(3))
    (tmp_path / "deep.npy").write_bytes(b"\x93NUMPY\x01\x00\x00\x20" + b"(" * 8192)
    for name in ("text.npy", "objects.npy", "many.npz", "deep.npy"):
        with pytest.raises(InputError, match="saved by numpy"):
            load_array(tmp_path / name)


def test_json_nested_without_end_is_refused(tmp_path):
    (tmp_path / "deep.json").write_text("[" * 100_000)
    with pytest.raises(InputError, match="not a readable JSON file"):
        read_json(tmp_path / "deep.json")


def test_what_a_killed_write_left_is_removed(tmp_path):
    code = "import os, sys; from mfh.files import atomic_write\nwith atomic_write(sys.argv[1]): os._exit(1)"
    subprocess.run([sys.executable, "-c", code, str(tmp_path / "a.csv")])
    (tmp_path / "mine.part").write_text("not of mfh")
    assert len(list(tmp_path.glob(".a.csv.*.part"))) == 1
    for other in (".mine.part", ".hidden.a.part"):
        (tmp_path / other).write_text("not of mfh")
    (tmp_path / ".a.csv.abcdefgh.part").mkdir()
    with claimed(tmp_path, (".",)):
        left = sorted(path.name for path in tmp_path.iterdir() if path.is_file())
    assert left == [".hidden.a.part", ".in-use", ".mine.part", "mine.part"]


def test_a_folder_that_cannot_be_made_is_named_before_anything_is_done(tmp_path):
    (tmp_path / "file").touch()
    for folder in (tmp_path / "file", tmp_path / "file" / "below"):
        with pytest.raises(InputError, match=r"cannot be used as a folder .*choose another --out"), claimed(folder):
            pass


def test_tensors(tmp_path):
    base = torch.arange(12.0)
    tensors = {
        "tied": base,
        "again": base,
        "part": base[:5],
        "other part": base[3:],
        "transposed": base.reshape(3, 4).T,
        "empty": torch.zeros(0),
        "empty too": torch.zeros(0),
        "half": base.bfloat16(),
        "parameter": torch.nn.Parameter(base + 1),
    }
    save_tensors(tmp_path / "t", "network", tensors, {"layers": [1, 2], "name": "ä"})
    loaded, facts = load_tensors(tmp_path / "t", "network")
    assert facts == {"layers": [1, 2], "name": "ä"}
    assert all(torch.equal(loaded[name], tensor) for name, tensor in tensors.items())
    assert loaded["half"].dtype == torch.bfloat16


@pytest.mark.parametrize(
    ("made", "cls", "kind"), [(mask, ChannelMask, "mask"), (saliency, ChannelSaliency, "saliency")]
)
def test_files_that_are_something_else(tmp_path, made, cls, kind):
    good = tmp_path / "good"
    made().save(good)
    assert isinstance(cls.load(str(good)), cls)
    contents = {
        "text": b"weights: 1, 0, 1\n",
        "empty": b"",
        "truncated": good.read_bytes()[:-7],
        "header only": good.read_bytes()[:40],
        "pickle": pickle.dumps({"weights": [1]}),
        "zeros": bytes(1000),
    }
    for name, content in contents.items():
        (tmp_path / name).write_bytes(content)
    torch.save({"weights": torch.ones(2)}, tmp_path / "torch")
    save_file({"weights": torch.ones(2)}, tmp_path / "foreign")
    save_file({"weights": torch.ones(2)}, tmp_path / "no facts", metadata={"mfh": kind})
    save_file({"weights": torch.ones(2)}, tmp_path / "no json", metadata={"mfh": kind, "facts": "{"})
    save_tensors(tmp_path / "old version", kind, {"weights": torch.ones(2)}, {"colour": "red"})
    other = saliency() if kind == "mask" else mask()
    other.save(tmp_path / "other")
    matches = {
        "other": f"holds {'saliency' if kind == 'mask' else 'mask'}, not a {kind} saved by mfh",
        "foreign": f"holds tensors of another program, not a {kind}",
        "old version": f"not a {kind} this version of mfh can read",
        "missing": f"no file .*missing; a {kind} saved by mfh was expected",
        ".": f"not a {kind} saved by mfh",
    }
    for name in [*contents, "torch", "foreign", "no facts", "no json", "old version", "other", "missing", "."]:
        with pytest.raises(InputError, match=matches.get(name, f"{name} is not a {kind} saved by mfh")) as caught:
            cls.load(tmp_path / name)
        assert "\n" not in str(caught.value)


def test_a_mask_whose_content_is_impossible(tmp_path):
    bad = mask()
    object.__setattr__(bad, "weights", np.array([0.0, 2.0]))
    save_fields(bad, tmp_path / "m", "mask")
    with pytest.raises(InputError, match=r"not a mask this version of mfh can read \(mask weights"):
        ChannelMask.load(tmp_path / "m")


def test_nothing_is_unpickled(tmp_path):
    class Bomb:
        def __reduce__(self):
            return os.mkdir, (str(tmp_path / "boom"),)

    (tmp_path / "bomb").write_bytes(pickle.dumps(Bomb()))
    torch.save(Bomb(), tmp_path / "bomb2")
    for name in ("bomb", "bomb2"):
        with pytest.raises(InputError):
            ChannelMask.load(tmp_path / name)
    assert not (tmp_path / "boom").exists()


def test_facts_are_json(tmp_path):
    mask().save(tmp_path / "m")
    raw = (tmp_path / "m").read_bytes()
    header = json.loads(raw[8 : 8 + int.from_bytes(raw[:8], "little")])
    assert json.loads(header["__metadata__"]["facts"])["layer"] == "a"


def test_close_names():
    assert close_names("genral", ["general", "specific"]) == "close names: 'general'"
    assert close_names("x", list("abcdefg")) == "known names: 'a', 'b', 'c', 'd', 'e', ..."
    assert close_names("x", []) == "there are none"


HOLDER = """
import sys, time
from mfh.files import claimed
with claimed(sys.argv[1]):
    print("held", flush=True)
    time.sleep(600)
"""


def test_a_claim_ends_with_its_process_however_it_ends(tmp_path):
    folder = tmp_path / "new"
    holder = subprocess.Popen([sys.executable, "-c", HOLDER, str(folder)], stdout=subprocess.PIPE, text=True)
    try:
        assert holder.stdout.readline() == "held\n"
        said = "new is in use by another process of mfh; wait for it, or use another"
        with pytest.raises(InputError, match=said), claimed(folder):
            pass
    finally:
        holder.kill()
        holder.communicate()
    with claimed(folder):
        assert [path.name for path in folder.iterdir()] == [".in-use"]


def test_a_lock_is_not_entered_twice_and_errors_release_it(tmp_path):
    with suppress(RuntimeError), locked(tmp_path / "a.lock"):
        with pytest.raises(BlockingIOError), locked(tmp_path / "a.lock", wait=False):
            pass
        raise RuntimeError
    with locked(tmp_path / "a.lock", wait=False):
        pass


@pytest.mark.parametrize(
    ("facts", "said"),
    [("[" * 100_000, "nested too deeply"), ("[1]", "facts of type list"), ("{", "is not a saliency saved by mfh")],
)
def test_facts_that_cannot_be_read(tmp_path, facts, said):
    save_file({"a": torch.zeros(1)}, tmp_path / "a.safetensors", metadata={"mfh": "saliency", "facts": facts})
    with pytest.raises(InputError, match=said):
        load_tensors(tmp_path / "a.safetensors", "saliency")
    (tmp_path / "deep.json").write_text("[" * 100_000)
    with pytest.raises(InputError, match="nested too deeply"):
        read_json(tmp_path / "deep.json")


def test_facts_are_read_without_the_tensors(tmp_path):
    path = tmp_path / "file.safetensors"
    save_tensors(path, "student", {"weight": torch.ones(3)}, {"seed": 4}, "students/soft.safetensors")
    assert load_facts(path, "student") == load_tensors(path, "student")[1] == {"seed": 4}
    with pytest.raises(InputError, match="holds student, not a network saved by mfh"):
        load_facts(path, "network")
    path.write_bytes(b"no tensors")
    with pytest.raises(InputError, match="is not a student saved by mfh"):
        load_facts(path, "student")


# --- Python files of users --------------------------------------------------------------------------------------------


@pytest.fixture
def twins(tmp_path):
    """Three files of one stem; all of them are forgotten afterwards."""
    paths = []
    for folder in ("a", "b", "c"):
        path = tmp_path / folder / "twin_of_three.py"
        path.parent.mkdir()
        path.write_text(f"name = {folder!r}\ntimes = 0\n", encoding="utf-8")
        paths.append(path)
    before, places = {*sys.modules}, [*sys.path]
    yield paths
    sys.path[:] = places
    for name in {*sys.modules} - before:
        if "twin_of_three" in name:
            del sys.modules[name]


def test_files_of_one_stem_are_modules_of_their_own_and_run_once(twins):
    modules = [load_code(path, "task file", "a function") for path in twins]
    assert [module.name for module in modules] == ["a", "b", "c"]
    assert len({module.__name__ for module in modules}) == 3
    for path, module in zip(twins, modules, strict=True):
        assert load_code(path, "task file", "a function") is module
        assert sys.modules[module.__name__] is module
        assert getattr(module, EXECUTED) == file_digest(path)


def test_work_does_not_begin_with_a_file_that_was_edited_after_it_ran(twins):
    module = load_code(twins[1], "task file", "a function")
    executed = getattr(module, EXECUTED)
    refuse_edited(twins[1])
    twins[1].write_text("name = 'edited'\n", encoding="utf-8")
    assert load_code(twins[1], "task file", "a function").name == "b"
    assert getattr(module, EXECUTED) == executed != file_digest(twins[1])
    with pytest.raises(InputError, match=r"b/twin_of_three.py was edited after this .*restart") as error:
        refuse_edited(f"{twins[1]}:name")
    refuse_edited(twins[0])
    refuse_edited("digits")
    refuse_edited(print)
    assert "\n" not in str(error.value)
    twins[1].unlink()
    refuse_edited(twins[1])  # what is gone cannot be run by another process


def test_a_file_that_cannot_be_run_leaves_nothing(twins):
    twins[0].write_text("raise KeyError('x')\n", encoding="utf-8")
    with pytest.raises(InputError, match=r"task file .* cannot be run: KeyError: 'x'"):
        load_code(twins[0], "task file", "a function")
    assert "twin_of_three" not in sys.modules
