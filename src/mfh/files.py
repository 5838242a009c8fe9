"""Files that are written whole or not at all, locks, tables, tensors without pickle, and Python files of users."""

import csv
import dataclasses
import errno
import hashlib
import importlib
import importlib.util
import io
import json
import os
import re
import stat
import sys
import tempfile
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path
from types import ModuleType
from typing import IO, TYPE_CHECKING, Any, Literal, TypeVar

import numpy as np
from numpy.typing import NDArray

from mfh.errors import FOREIGN, InputError, in_a_line
from mfh.values import check_fields

if TYPE_CHECKING:
    import pandas as pd
    from torch import Tensor

T = TypeVar("T")


class OwnFileError(OSError):
    """A file of `mfh` itself could not be written. What was finished is kept, so the same command can go on later."""


@contextmanager
def _own(path: Path) -> Iterator[None]:
    """Tell errors of the file system apart from those that come out of a user's code."""
    try:
        yield
    except OwnFileError:
        raise
    except OSError as error:
        raise OwnFileError(error.errno, error.strerror or str(error), str(path)) from error


class _OwnFile(io.FileIO):
    """The temporary file that replaces `path`. An error of writing it is one of `path`, whose name the user knows."""

    def __init__(self, handle: int, path: Path) -> None:
        super().__init__(handle, "w")
        self.path = path

    def write(self, data: Any) -> int:
        with _own(self.path):
            return super().write(data)


@contextmanager
def atomic_write(path: str | Path, mode: str = "w") -> Iterator[IO[Any]]:
    """Open a temporary file that replaces `path` when the block ends without an error.

    Readers see the old file or the new one, never half of one. After an exception or a crash the old file is still
    there. Missing folders are made. Other errors of the block stay as they are.

    Args:
        path: File to write.
        mode: "w" for text in UTF-8, or "wb".

    Raises:
        OwnFileError: The file cannot be written, for instance because the disk is full.
    """
    path = Path(path)
    with _own(path):
        path.parent.mkdir(parents=True, exist_ok=True)
        handle, name = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.", suffix=".part")
    temporary = Path(name)
    try:
        binary = io.BufferedWriter(_OwnFile(handle, path))
        with binary if "b" in mode else io.TextIOWrapper(binary, encoding="utf-8", newline="") as file:
            yield file
            with _own(path):
                file.flush()
                os.fsync(file.fileno())
        with _own(path):
            # mkstemp makes private files. The result gets the permissions of any other new file.
            umask = os.umask(0)
            os.umask(umask)
            temporary.chmod(0o666 & ~umask)
            temporary.replace(path)
    except BaseException:
        with suppress(OSError):
            temporary.unlink(missing_ok=True)
        raise


@contextmanager
def locked(path: str | Path, *, wait: bool = True) -> Iterator[None]:
    """Hold a lock file during the block. The lock ends with the process, however it ends.

    Args:
        path: The lock file. It may stay behind, which means nothing.
        wait: Whether to wait while another process holds the lock.

    Raises:
        BlockingIOError: Another process holds the lock, and `wait` is False.
    """
    from filelock import FileLock, Timeout

    path = Path(path)
    with _own(path):
        path.parent.mkdir(parents=True, exist_ok=True)
    lock = FileLock(path)
    try:
        lock.acquire(timeout=-1 if wait else 0)
    except Timeout:
        raise BlockingIOError(errno.EAGAIN, os.strerror(errno.EAGAIN), str(path)) from None
    try:
        yield
    finally:
        lock.release()


#: Name of a temporary file of `atomic_write`; a killed process leaves it behind.
_UNFINISHED = re.compile(r"\..+\.\w{8}\.part")


@contextmanager
def claimed(folder: str | Path, sweep: Sequence[str] = ()) -> Iterator[None]:
    """Hold a folder during the block. The claim ends with the process, however it ends.

    Args:
        folder: Folder to hold. It is made if it is missing.
        sweep: Patterns of the folders within it that only the holder writes to, "." for itself. Temporary files that
            killed processes left there are removed.

    Raises:
        InputError: Another process holds the folder, or it cannot be made or written to.
    """
    with ExitStack() as stack:
        try:
            stack.enter_context(locked(Path(folder) / ".in-use", wait=False))
        except BlockingIOError:
            raise InputError(
                f"{folder} is in use by another process of mfh; wait for it, or use another --out"
            ) from None
        except OSError as error:
            reason = error.strerror or str(error)
            raise InputError(f"{folder} cannot be used as a folder ({reason}); choose another --out") from None
        for pattern in sweep:
            for path in Path(folder).glob(f"{pattern}/.*.part"):
                if _UNFINISHED.fullmatch(path.name):
                    with suppress(OSError):  # it may be a folder of another program
                        path.unlink()
        yield


#: The largest text file that is read, in bytes. The largest that mfh writes, an index of 200,000 clips, has 20 MB.
MOST_TEXT = 2**28


def regular_size(path: str | Path) -> int:
    """Size in bytes of a regular file. Every reader asks this before it opens a file.

    Reading a named pipe or a device such as /dev/zero may never end, and opening a pipe may never return.

    Raises:
        OSError: There is no such file, or it is no regular file.
    """
    status = Path(path).stat()
    if not stat.S_ISREG(status.st_mode):
        raise OSError(f"it is {_KINDS.get(stat.S_IFMT(status.st_mode), 'no file')}; a regular file was expected")
    return status.st_size


_KINDS = {
    stat.S_IFDIR: "a folder",
    stat.S_IFIFO: "a named pipe",
    stat.S_IFCHR: "a device",
    stat.S_IFBLK: "a device",
    stat.S_IFSOCK: "a socket",
}


def read_text(path: str | Path) -> str:
    """The text of a regular file in UTF-8, with or without a byte order mark. Line ends stay as they are.

    Raises:
        OSError: There is no such file, it is no regular file, or it has more than `MOST_TEXT` bytes.
        UnicodeDecodeError: It is not UTF-8.
    """
    size = regular_size(path)
    if size > MOST_TEXT:
        raise OSError(f"it has {size} bytes; at most {MOST_TEXT} were expected")
    return Path(path).read_bytes().decode("utf-8-sig")


def file_digest(path: str | Path) -> str:
    """SHA-256 of a regular file's content, in hexadecimal.

    Raises:
        OSError: There is no such file, or it is no regular file.
    """
    regular_size(path)
    with Path(path).open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def write_json(path: str | Path, content: Mapping[str, Any]) -> None:
    """Write a mapping as indented JSON, whole or not at all.

    Args:
        path: File to write.
        content: What to write. Values that JSON does not know are written as text.
    """
    with atomic_write(path) as file:
        json.dump(content, file, indent=2, default=str)
        file.write("\n")


def read_json(path: str | Path) -> dict[str, Any]:
    """Read a JSON object.

    Raises:
        InputError: There is no such file, or it does not hold a JSON object.
    """
    try:
        content = _parsed(read_text(path))
    except FileNotFoundError:
        raise InputError(f"no file {path}") from None
    except InputError:
        raise
    except (OSError, ValueError) as error:
        raise InputError(f"{path} is not a readable JSON file ({error})") from None
    if not isinstance(content, dict):
        raise InputError(f"{path} holds a JSON {type(content).__name__}; an object was expected")
    return content


def _parsed(text: str) -> Any:
    try:
        return json.loads(text)
    except RecursionError:
        raise ValueError("it is nested too deeply") from None


def write_table(path: str | Path, columns: Sequence[str], rows: Iterable[Mapping[str, Any]]) -> None:
    """Write a CSV table, whole or not at all.

    A spreadsheet would run text such as "=1+1" as a formula. An apostrophe in front makes it text. `read_table` and
    `read_frame` remove it, so text comes back unchanged. Only bytes of file names that are not UTF-8 become escapes.

    Args:
        path: File to write.
        columns: Heading of the table.
        rows: Rows from column to value. None makes an empty field.
    """
    with atomic_write(path) as file:
        file.write(table_text(columns, rows))


def table_text(columns: Sequence[str], rows: Iterable[Mapping[str, Any]]) -> str:
    """The content of a CSV table, see `write_table`."""
    text = io.StringIO(newline="")
    writer = csv.DictWriter(_Lines(text), columns, lineterminator="\r\n")
    writer.writeheader()
    writer.writerows({name: _written(value) for name, value in row.items()} for row in rows)
    return text.getvalue()


class _Lines:
    """Ends lines with a line feed. The csv module quotes a carriage return only if its own lines end with one."""

    def __init__(self, file: IO[str]) -> None:
        self.file = file

    def write(self, line: str) -> None:
        self.file.write(line.removesuffix("\r\n") + "\n")


_FORMULA = re.compile(r"'*[=+\-@\t\r]")
_WRITTEN_FORMULA = re.compile(r"'+[=+\-@\t\r]")


def _written(value: Any) -> Any:
    """A cell as it is written. Only text that is no number can be a formula."""
    if not isinstance(value, str):
        return value
    text = value.encode("utf-8", "backslashreplace").decode()
    return f"'{text}" if _FORMULA.match(text) and not _is_number(text) else text


def _read(text: str) -> str:
    """The text of a cell that `_written` made."""
    return text[1:] if _WRITTEN_FORMULA.match(text) else text


def _is_number(text: str) -> bool:
    try:
        float(text)
    except ValueError:
        return False
    return True


def read_table(
    path: str | Path, columns: Sequence[str] | None, way_out: str, *, foreign: bool = False
) -> list[dict[str, str]]:
    """Read a table that `write_table` wrote. A table that is not whole is refused.

    Args:
        path: File to read.
        columns: Expected heading. None accepts any.
        way_out: What the user can do about a file that is refused. It ends the message.
        foreign: Whether another program made the file. It may then have more columns, in any order, and its last line
            may lack a line end.

    Returns:
        The rows, from column to text.

    Raises:
        InputError: There is no such file, the heading differs, a line has another number of fields, or the last line
            is cut.
    """
    try:
        text = read_text(path)
        reader = csv.DictReader(io.StringIO(text, newline=""), strict=not foreign)
        heading = tuple(reader.fieldnames or ())
        rows, ragged = [], None
        for row in reader:
            rows.append(row)
            if ragged is None and (None in row or None in row.values()):
                ragged = reader.line_num
    except FileNotFoundError:
        raise InputError(f"no file {path}; {way_out}") from None
    except (OSError, UnicodeDecodeError, csv.Error) as error:
        raise InputError(f"{path} is not a readable CSV table ({error}); {way_out}") from None
    missing = [name for name in columns or () if name not in heading]
    if missing:
        raise InputError(f"{path} has no column {missing[0]!r}; {way_out}")
    if columns is not None and not foreign and heading != tuple(columns):
        raise InputError(f"{path} has columns {','.join(heading)}, not {','.join(columns)}; {way_out}")
    if ragged is not None:
        raise InputError(f"{path} has another number of fields in line {ragged} than in its heading; {way_out}")
    if not foreign and not text.endswith("\n"):
        raise InputError(f"{path} is not a whole table: its last line is cut; {way_out}")
    return [{name: _read(cell) for name, cell in row.items()} for row in rows]


#: Columns of tidy tables that hold text.
_TEXT_COLUMNS = ("experiment", "role", "arm", "score", "layer", "split", "metric")


def read_frame(path: Path, columns: Sequence[str]) -> "pd.DataFrame":
    """Read a tidy table of results. Known text columns stay text, all others are numbers, empty fields are missing.

    Args:
        path: File to read.
        columns: Columns that it must have.

    Raises:
        InputError: There is no such file, it is no table, or it lacks one of the columns.
    """
    import pandas as pd

    try:
        # A layer may be called "NA" or "null", so only an empty field counts as missing.
        text = dict.fromkeys(_TEXT_COLUMNS, str)
        content = io.StringIO(read_text(path), newline="")
        frame = pd.read_csv(content, dtype=text, keep_default_na=False, na_values=[""])
        numbers = {column: pd.to_numeric(frame[column]) for column in frame.columns if column not in _TEXT_COLUMNS}
    except FileNotFoundError:
        raise InputError(f"no file {path}; a run folder made by mfh holds one") from None
    except (OSError, ValueError, TypeError) as error:  # errors of pandas and of decoding are ValueErrors
        reason = str(error).splitlines()[0]
        raise InputError(f"{path} is not a readable table of results ({reason})") from None
    missing = [column for column in columns if column not in frame.columns]
    if missing:
        raise InputError(f"{path} has no column {missing[0]!r}; expected {', '.join(columns)}")
    texts = {
        column: frame[column].map(_read, na_action="ignore") for column in frame.columns if column in _TEXT_COLUMNS
    }
    return frame.assign(**numbers, **texts)


def markdown_table(
    columns: Sequence[str], rows: Iterable[Sequence[str]], alignments: Sequence[str] | None = None
) -> str:
    """A Markdown table.

    Args:
        columns: Headings, as Markdown.
        rows: Cells by row, as Markdown.
        alignments: "number" (flush right) or "text" for every column (default: all "number").

    Example:
        >>> print(markdown_table(["arm", "gain"], [["soft", "+1.2"]], ["text", "number"]), end="")
        | arm | gain |
        | --- | ---: |
        | soft | +1.2 |
    """
    rules = ["---" if alignment == "text" else "---:" for alignment in alignments or ["number"] * len(columns)]
    return "".join("| " + " | ".join(row) + " |\n" for row in (columns, rules, *rows))


def load_array(path: str | Path) -> NDArray[Any]:
    """Read an array of numbers from a .npy file.

    Raises:
        InputError: There is no such file, or it does not hold an array of plain numbers.
    """
    return np.array(map_array(path))


def map_array(path: str | Path, mode: Literal["r", "c"] = "r") -> NDArray[Any]:
    """An array of numbers in a .npy file, read from the disk when it is used.

    No memory is taken for what the file only claims to hold.

    Args:
        path: File to read.
        mode: "r" for an array that cannot be changed; "c" for one whose changes stay in memory.

    Raises:
        InputError: There is no such file, or it does not hold an array of plain numbers.
    """
    try:
        regular_size(path)
        with np.errstate(over="ignore"):  # absurd shapes are refused, without a warning first
            array: NDArray[Any] = np.lib.format.open_memmap(path, mode=mode)
    except FileNotFoundError:
        raise InputError(f"no file {path}; an array saved by numpy.save was expected") from None
    except Exception as error:  # a damaged header raises errors of many kinds
        reason = " ".join(str(error).split())[:200]
        raise InputError(f"{path} is not an array of numbers saved by numpy.save ({reason})") from None
    if array.dtype.kind not in "fiub":
        raise InputError(f"{path} holds no array of numbers; one saved by numpy.save was expected")
    return array


def save_tensors(
    path: str | Path, kind: str, tensors: Mapping[str, "Tensor"], facts: Mapping[str, Any], place: str = ""
) -> None:
    """Write named tensors and JSON facts to one safetensors file with a checksum, whole or not at all.

    Args:
        path: File to write.
        kind: What the file holds ("saliency", "mask", "network"). Loading checks it.
        tensors: Tensors on any device. Tensors that share memory are stored separately.
        facts: Values that JSON can hold.
        place: What the file is within a run folder; empty elsewhere.
    """
    from safetensors.torch import save

    # Tied weights and overlapping views share memory, which the format refuses, so the second one is cloned.
    content: dict[str, Tensor] = {}
    seen: set[int] = set()
    for name, tensor in tensors.items():
        tensor = tensor.detach().cpu().contiguous()
        if tensor.untyped_storage().data_ptr() in seen:
            tensor = tensor.clone()
        seen.add(tensor.untyped_storage().data_ptr())
        content[name] = tensor
    metadata = {"mfh": kind, "facts": json.dumps(dict(facts)), **({"place": place} if place else {})}
    data = save(content, metadata=metadata | {"checksum": _tensors_digest(content, metadata)})
    with atomic_write(path, "wb") as file:
        file.write(data)


def _tensors_digest(tensors: Mapping[str, "Tensor"], metadata: Mapping[str, str]) -> str:
    import torch

    digest = hashlib.sha256(json.dumps(sorted(metadata.items())).encode())
    for name, tensor in sorted(tensors.items()):
        digest.update(f"{name} {tensor.dtype} {list(tensor.shape)}".encode())
        digest.update(tensor.reshape(-1).view(torch.uint8).numpy().data)
    return digest.hexdigest()[:16]


def save_fields(value: Any, path: str | Path, kind: str, place: str = "") -> None:
    """Write a dataclass of NumPy arrays and JSON facts with `save_tensors`.

    Args:
        value: Dataclass instance to write.
        path: File to write.
        kind: What the file holds, see `save_tensors`.
        place: What the file is within a run folder; empty elsewhere.
    """
    import torch

    fields = {field.name: getattr(value, field.name) for field in dataclasses.fields(value)}
    arrays = {name: field for name, field in fields.items() if isinstance(field, np.ndarray)}
    facts = {name: field for name, field in fields.items() if name not in arrays}
    tensors = {name: torch.from_numpy(np.ascontiguousarray(array)) for name, array in arrays.items()}
    save_tensors(path, kind, tensors, facts, place)


def load_fields(made: type[T], path: str | Path, kind: str, place: str = "") -> T:
    """Read a dataclass that `save_fields` wrote.

    Args:
        made: The dataclass to make.
        path: File to read.
        kind: What the file must hold.
        place: What the file must be, see `load_tensors`.

    Raises:
        InputError: There is no such file, or it holds something else.
    """
    tensors, facts = load_tensors(path, kind, place)
    try:
        value = made(**facts, **{name: tensor.numpy() for name, tensor in tensors.items()})
        check_fields(value)
        return value
    except (TypeError, InputError) as error:
        raise InputError(f"{path} is not a {kind} this version of mfh can read ({error})") from None


def load_facts(path: str | Path, kind: str) -> dict[str, Any]:
    """The facts of a file that `save_tensors` wrote, without reading its tensors, so without checking them.

    Args:
        path: File to read.
        kind: What the file must hold.

    Raises:
        InputError: There is no such file, it is not a safetensors file, or it holds something else.
    """
    with _tensor_file(path, kind) as (_, metadata):
        return _facts_in(metadata, path, kind)


@contextmanager
def _tensor_file(path: str | Path, kind: str) -> Iterator[tuple[Any, dict[str, str]]]:
    """An open safetensors file of ours, and its metadata."""
    from safetensors import SafetensorError, safe_open

    try:
        regular_size(path)
        with safe_open(str(path), framework="pt") as file:
            metadata = file.metadata() or {}
            if metadata.get("mfh") != kind:
                held = metadata.get("mfh", "tensors of another program")
                raise InputError(f"{path} holds {held}, not a {kind} saved by mfh")
            yield file, metadata
    except FileNotFoundError:
        raise InputError(f"no file {path}; a {kind} saved by mfh was expected") from None
    except InputError:
        raise
    except (SafetensorError, OSError, KeyError, ValueError) as error:
        raise InputError(f"{path} is not a {kind} saved by mfh ({error})") from None


def _facts_in(metadata: Mapping[str, str], path: str | Path, kind: str) -> dict[str, Any]:
    facts = _parsed(metadata["facts"])
    if not isinstance(facts, dict):
        raise InputError(f"{path} holds facts of type {type(facts).__name__}; a {kind} saved by mfh has a mapping")
    return facts


def load_tensors(path: str | Path, kind: str, place: str = "") -> tuple[dict[str, "Tensor"], dict[str, Any]]:
    """Read tensors and facts that `save_tensors` wrote.

    Args:
        path: File to read.
        kind: What the file must hold.
        place: What the file must be within its run folder, if it says what it is. Empty accepts any.

    Returns:
        The tensors, on the CPU, and the facts.

    Raises:
        InputError: There is no such file, it is not a safetensors file, it holds something else, or it was changed
            after it was written.
    """
    with _tensor_file(path, kind) as (file, metadata):
        facts = _facts_in(metadata, path, kind)
        tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
    checksum = metadata.pop("checksum", None)
    if checksum is not None and checksum != _tensors_digest(tensors, metadata):
        raise InputError(f"{path} was changed after it was written (its checksum differs); remove it to make it again")
    if place and metadata.get("place", place) != place:
        raise InputError(f"{path} was written as {metadata['place']}, it seems exchanged; remove it to make it again")
    return tensors, facts


# --- Python files of users --------------------------------------------------------------------------------------------


#: Name in a module that `load_code` ran: the digest of what was executed, whatever the file holds later.
EXECUTED = "__mfh_executed__"


def load_code(path: Path, kind: str, wanted: str) -> ModuleType:
    """Run a user's Python file as a module, once in a process.

    The module carries a digest of the content that was executed, `EXECUTED`. A file that is edited later needs a new
    process, see `refuse_edited`.

    Args:
        path: The file.
        kind: What the file is, for messages: "task file".
        wanted: What it should hold, for messages: "a function task()".

    Raises:
        InputError: There is no such file, or it cannot be run.
    """
    if not path.is_file():
        raise InputError(f"there is no {kind} {path}; give the path of a Python file with {wanted}")
    place = path.resolve()
    # Registered under its own stem, so that classes in it can be pickled for worker processes. The path tells files of
    # one stem apart.
    stem = path.stem.replace(".", "_")
    unique = f"mfh_task_{stem}_{hashlib.sha256(os.fsencode(place)).hexdigest()[:12]}"
    for name in (stem, unique):
        if getattr(sys.modules.get(name), "__file__", None) == str(place):
            return sys.modules[name]
    name = unique if stem in sys.modules or importlib.util.find_spec(stem) is not None else stem
    spec = importlib.util.spec_from_file_location(name, place)
    assert spec is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[name] = module
    sys.path.insert(0, str(place.parent))  # modules beside the file can be imported, as in a script
    try:
        content = place.read_bytes()
        setattr(module, EXECUTED, hashlib.sha256(content).hexdigest())
        exec(compile(content, place, "exec", dont_inherit=True), vars(module))  # noqa: S102
    except FOREIGN as error:
        del sys.modules[name]
        raise InputError(f"{kind} {path} cannot be run: {in_a_line(error)}") from error
    return module


def refuse_edited(spec: Any) -> None:
    """Refuse to begin work with a file that was edited after this process ran it: worker processes would run the edit.

    Args:
        spec: The file, or FILE.py:NAME; anything else is no file.

    Raises:
        InputError: The file was edited after `load_code` ran it.
    """
    found = re.fullmatch(r"(.*\.py)(:\w+)?", str(spec)) if isinstance(spec, (str, Path)) else None
    path = Path("" if found is None else found[1]).resolve()
    for module in [*sys.modules.values()]:
        executed = getattr(module, "__dict__", {}).get(EXECUTED)
        if executed is not None and module.__file__ == str(path) and path.is_file() and file_digest(path) != executed:
            raise InputError(
                f"{path} was edited after this process ran it, and old and new code would be mixed; start a new "
                "process (in a notebook: restart the kernel)"
            )


def import_code(name: str, said: str) -> ModuleType:
    """Import a user's module, also from the working directory, as `python -m` finds it.

    Args:
        name: Full name of the module.
        said: What names it, the beginning of messages: "task 'package.module:function'".

    Raises:
        InputError: It cannot be imported.
    """
    sys.path.insert(0, "")
    try:
        return importlib.import_module(name)
    except FOREIGN as error:
        raise InputError(f"{said}: module {name!r} cannot be imported: {in_a_line(error)}") from error
    finally:
        sys.path.remove("")
