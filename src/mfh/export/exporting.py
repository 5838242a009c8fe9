"""A network as a file, which counts once what it computes is compared with the network."""

import copy
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from statistics import median

import torch
from torch import Tensor, nn

from mfh import files
from mfh.data.pairs import Nested, map_tensors, num_samples
from mfh.errors import FOREIGN, InputError, in_a_line
from mfh.export import LOADING
from mfh.export.card import card_text, facts_text, loading_code
from mfh.export.formats import Exporter, Format, Runner, format_of, quantised
from mfh.networks.calling import call
from mfh.networks.layers import as_logits
from mfh.networks.modes import evaluating, original

#: Numbers of samples in the batches that file and network are compared on.
BATCHES = (1, 7, 64)
#: Largest difference of an output, absolute or, of outputs above 1, as a share of the largest one.
TOLERANCE = 1e-5

_RUNS, _SECONDS = 50, 1.0


@dataclass(frozen=True)
class Exported:
    """An exported network.

    Args:
        path: Its file.
        card: The model card, which is named after the file: "student.pt2.md".
        parameters: Number of its parameters.
        size: Size of the file in bytes.
        milliseconds: Median time of one sample on one core.
        difference: Largest difference of an output from that of the network, on real samples.
        loading: Python code that loads the file without `mfh` and runs it.
        int8: The variant with 8-bit weights, if there is one.
    """

    path: Path
    card: Path
    parameters: int
    size: int
    milliseconds: float
    difference: float
    loading: str
    int8: "Quantised | None" = None

    @property
    def lines(self) -> list[str]:
        """What was exported, for the terminal and the report."""
        lines = [
            f"Student: {self.path}, checked against the network at batches of 1, 7 and 64 (largest difference "
            f"{self.difference:.1g})",
            measures(self.parameters, self.size, self.milliseconds),
        ]
        if self.int8 is not None:
            lines.append(f"8-bit weights: {self.int8.path}, {self.int8.in_words}")
        return [*lines, f"Model card: {self.card}", LOADING, *self.loading.splitlines()]


@dataclass(frozen=True)
class Quantised:
    """A variant with 8-bit weights.

    Args:
        path: Its file.
        size: Size of the file in bytes.
        milliseconds: Median time of one sample on one core.
        difference: Largest difference of an output from that of the network, on real samples.
        agreement: Share of the samples with the same largest output; None where outputs are no classes.
        samples: Number of samples that were compared.
    """

    path: Path
    size: int
    milliseconds: float
    difference: float
    agreement: float | None
    samples: int

    @property
    def in_words(self) -> str:
        """Size, time and agreement."""
        agreement = f"largest difference of an output {self.difference:.2g}"
        if self.agreement is not None:
            agreement = f"predicts the same class for {100 * self.agreement:.1f} % of {self.samples} test samples"
        return f"{in_bytes(self.size)}, {in_milliseconds(self.milliseconds)}, {agreement}"


def export_network(
    network: nn.Module,
    samples: Nested,
    path: str | Path,
    *,
    about: Mapping[str, str],
    classes: Sequence[str] = (),
    format: Format | None = None,  # noqa: A002 (the word users know)
    categorical: bool = True,
    int8: bool = False,
) -> Exported:
    """Write a network as a file that runs without `mfh`, and a model card beside it.

    The file is written once its outputs agree with those of the network, within `TOLERANCE`, on batches of 1, 7 and
    64 samples.

    Args:
        network: The network. It stays as it is.
        samples: Real inputs, samples along dim 0: a tensor, or nested tuples, lists and dicts of tensors.
        path: File to write: .pt2 (`torch.export`), .onnx (extra `export`), or .safetensors (weights alone).
        about: What the card says of the network: heading -> text. The file holds a part of it.
        classes: Names of the classes, in the order of outputs.
        format: "pt2", "onnx" or "safetensors" (default: by the ending of `path`).
        categorical: Whether the largest output is the predicted class.
        int8: Whether to write a variant with 8-bit weights too; .onnx only.

    Returns:
        What was written, with size and time.

    Raises:
        InputError: The file cannot be written there, the network cannot be exported so, or file and network disagree.
    """
    path = Path(path)
    exporter = format_of(path, format)
    check_place(path)
    if int8 and exporter.suffix != "onnx":
        raise InputError(f"int8 is for .onnx files, but {path} is to be written; choose the format onnx")
    plain = copy.deepcopy(original(network)).cpu()
    samples = map_tensors(lambda tensor: tensor.detach().cpu(), samples)
    with evaluating(plain):
        plain.eval()
        batches = [_batch(samples, size) for size in BATCHES]
        content = exporter.write(plain, batches[1], facts_text(about, classes))
        difference = _compared(exporter, content, plain, batches, path)
        milliseconds = _latency(exporter, content, plain, batches[0])
        variant = _quantised(exporter, content, plain, samples, path, categorical) if int8 else None
        loading = loading_code(path.as_posix(), exporter, plain, batches[0], classes, categorical=categorical)
    parameters = sum(parameter.numel() for parameter in plain.parameters())
    made = Exported(
        path,
        _card_of(path),
        parameters,
        len(content),
        milliseconds,
        difference,
        loading,
        None if variant is None else variant[0],
    )
    written = {path: content} if variant is None else {path: content, variant[0].path: variant[1]}
    for place, data in written.items():
        with files.atomic_write(place, "wb") as file:
            file.write(data)
    costs = [measures(parameters, len(content), milliseconds)]
    if variant is not None:
        costs.append(f"{variant[0].path.name} has 8-bit weights: {variant[0].in_words}.")
    with files.atomic_write(made.card) as file:
        file.write(card_text(path.name, exporter, plain, batches[0], about, classes, costs, categorical=categorical))
    return made


def check_place(path: Path) -> None:
    """Refuse a file that cannot be written where the user wants it.

    Raises:
        InputError: Its folder does not exist, there is a folder of its name, or the model card would replace another
            file.
    """
    if not path.parent.is_dir():
        raise InputError(f"{path.parent} is no folder; make it, or choose another file to write")
    if path.is_dir():
        raise InputError(f"{path} is a folder; give the name of a file to write")
    card = _card_of(path)
    if card.exists() and not _is_card(card):
        raise InputError(
            f"{card} exists and is no model card, which would be written there; give the exported file another name"
        )


def _card_of(path: Path) -> Path:
    """The model card of a file: "student.pt2.md", as students of two formats may be two students."""
    return path.with_name(f"{path.name}.md")


def _is_card(path: Path) -> bool:
    """Whether a file is the model card of an exported file of its name."""
    if not path.is_file():
        return False
    with path.open(encoding="utf-8", errors="replace") as file:
        return file.readline().startswith(f"# {path.stem}")


def _batch(samples: Nested, size: int) -> Nested:
    """The first samples as a batch, again from the start where there are too few."""
    rows = torch.arange(size) % num_samples(samples)
    return map_tensors(lambda tensor: tensor[rows].clone(), samples)


def _compared(exporter: Exporter, content: bytes, network: nn.Module, batches: Sequence[Nested], path: Path) -> float:
    """The largest difference of an output between file and network."""
    largest = 0.0
    try:
        run = exporter.runner(content, network)
        pairs = [(run(batch), as_logits(call(network, batch))) for batch in batches]
    except FOREIGN as error:
        raise InputError(f"{path} was not written: the exported student does not run ({in_a_line(error)})") from error
    for found, expected in pairs:
        difference = _difference(found, expected)
        if not difference <= TOLERANCE * max(1.0, float(expected.abs().max())):
            raise InputError(
                f"{path} was not written: of {len(expected)} test samples, the exported student differs from the "
                f"network by {difference:.2g}, more than {TOLERANCE:g}; its forward is not the same for every input: "
                "export it as .safetensors"
            )
        largest = max(largest, difference)
    return largest


def _difference(found: Tensor, expected: Tensor) -> float:
    """The largest difference of an entry; infinite for another shape. NaN in both is no difference."""
    if found.shape != expected.shape:
        return float("inf")
    change = (found.float() - expected.float()).abs()
    both = found.isnan() & expected.isnan()
    return float(torch.where(both, torch.zeros_like(change), change).max())


def _latency(exporter: Exporter, content: bytes, network: nn.Module, one: Nested) -> float:
    """Median milliseconds of one sample on one core."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        run = exporter.runner(content, network, threads=1)
        for _ in range(3):
            run(one)
        return _timed(run, one)
    finally:
        torch.set_num_threads(threads)


def _timed(run: Runner, one: Nested) -> float:
    times: list[float] = []
    until = time.perf_counter() + _SECONDS
    while len(times) < _RUNS and (not times or time.perf_counter() < until):
        started = time.perf_counter()
        run(one)
        times.append(time.perf_counter() - started)
    return 1000 * median(times)


def _quantised(
    exporter: Exporter, content: bytes, network: nn.Module, samples: Nested, path: Path, categorical: bool
) -> tuple[Quantised, bytes]:
    """The variant with 8-bit weights, and the content of its file."""
    small = quantised(content)
    try:
        found, expected = exporter.runner(small, network)(samples), as_logits(call(network, samples))
    except FOREIGN as error:
        raise InputError(f"onnxruntime cannot run 8-bit weights of this student ({in_a_line(error)})") from error
    same = (found.argmax(1) == expected.argmax(1)).float().mean()
    variant = Quantised(
        path=path.with_name(f"{path.stem}.int8.onnx"),
        size=len(small),
        milliseconds=_latency(exporter, small, network, _batch(samples, 1)),
        difference=_difference(found, expected),
        agreement=float(same) if categorical else None,
        samples=num_samples(samples),
    )
    return variant, small


def measures(parameters: int, size: int, milliseconds: float) -> str:
    """Parameters, size and time in words."""
    return f"{parameters:,} parameters, {in_bytes(size)}, {in_milliseconds(milliseconds)}"


def in_bytes(size: int) -> str:
    """A file size as text.

    Example:
        >>> in_bytes(1536), in_bytes(3_500_000)
        ('1.5 kB', '3.5 MB')
    """
    return f"{size / 1e6:.1f} MB" if size >= 1e6 else f"{size / 1e3:.1f} kB"


def in_milliseconds(milliseconds: float) -> str:
    """The time of one sample as text."""
    return f"{milliseconds:.2g} ms for one sample on one core"
