"""A teacher given by its outputs: a tensor, or a file that is mapped into memory."""

from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from mfh.data.pairs import place_of
from mfh.errors import InputError
from mfh.files import map_array

# How many rows are checked at once: outputs may be larger than memory.
_BLOCK = 4096


def teacher_outputs(source: Tensor | NDArray[Any] | str | Path, samples: int, name: str = "teacher_logits") -> Tensor:
    """A teacher's logits, or other outputs, for the samples of a data set.

    Args:
        source: (samples, ...), the logits in data-set order; or the path of a file that holds them, .npy or
            .safetensors (with one tensor, or with one called "logits"). A file is mapped into memory: only the rows
            that are used are read.
        samples: The number of samples.
        name: The name of the outputs in messages.

    Raises:
        InputError: There is no such file, it holds something else, or its number of rows is not the number of samples.
    """
    if isinstance(source, (str, Path)):
        name = f"{name} ({source})"
        logits = _read(Path(source), name)
    elif isinstance(source, Tensor):
        logits = source
    elif isinstance(source, np.ndarray):
        logits = _tensor(source) if source.dtype.kind == "f" else torch.empty(0)
    else:
        raise InputError(f"{name} is a {type(source).__name__}; a tensor, an array or the path of a file was expected")
    if logits.ndim < 2 or len(logits) != samples or not logits.is_floating_point():
        given = source if isinstance(source, np.ndarray) else logits
        raise InputError(
            f"{name} has {len(given) if given.ndim else 0} rows for {samples} samples (shape {tuple(given.shape)}, "
            f"{given.dtype}); one row of floating point numbers per sample, in data-set order, was expected"
        )
    return logits


def check_finite(logits: Tensor, sample: str = "training sample", what: str = "logits", pairs: Any = None) -> None:
    """Refuse a teacher's logits, or other outputs, that are not finite.

    Args:
        logits: (N, ...), in data-set order.
        sample: What a row is, for the message.
        what: What the outputs are, for the message.
        pairs: The training pairs, whose split and position the message then names.

    Raises:
        InputError: A number is NaN or infinite.
    """
    for start in range(0, len(logits), _BLOCK):
        well = torch.isfinite(logits[start : start + _BLOCK]).flatten(1).all(1)
        if not bool(well.all()):
            row = start + int((~well).nonzero()[0])
            if pairs is not None:
                split, row = place_of(pairs, "train", row)
                sample = f"{split} split, sample"
            raise InputError(
                f"the teacher's {what} are NaN or infinite ({sample} {row}); check its weights and its input"
            )


def _tensor(array: NDArray[Any]) -> Tensor:
    """An array as a tensor, which shares its memory where PyTorch knows such arrays."""
    kind = np.dtype(np.float64) if array.dtype.itemsize > 8 else array.dtype.newbyteorder("=")
    if array.dtype != kind or min(array.strides, default=0) < 0:
        array = np.array(array, dtype=kind, order="C")
    return torch.from_numpy(array)


def _read(path: Path, name: str) -> Tensor:
    if not path.is_file():
        raise InputError(f"{name}: there is no such file; give a .npy or .safetensors file")
    try:
        if path.suffix == ".safetensors":
            return _read_safetensors(path, name)
    except InputError:
        raise
    except Exception as error:  # whatever the file holds, it is not logits
        reason = " ".join(str(error).split())[:200]
        raise InputError(
            f"{name} cannot be read ({reason}); a .npy or .safetensors file of one tensor was expected"
        ) from None
    try:
        # Copy-on-write: torch needs writable memory, and the file must stay as it is.
        return _tensor(map_array(path, "c"))
    except InputError as error:
        raise InputError(f"{name} cannot be read: {error}") from None


def _read_safetensors(path: Path, name: str) -> Tensor:
    from safetensors import safe_open

    with safe_open(str(path), framework="pt") as file:
        held = list(file.keys())
        chosen = held[0] if len(held) == 1 else "logits"
        if chosen not in held:
            raise InputError(f"{name} holds {len(held)} tensors; one, or one called 'logits', was expected")
        tensor: Tensor = file.get_tensor(chosen)
        return tensor
