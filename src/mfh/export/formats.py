"""The formats of exported networks: each turns a network into the bytes of a file, and runs such bytes.

What is inside runs without `mfh`: an exported program, an ONNX graph, or weights. The batch size is free.
"""

import copy
import io
import tempfile
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import torch
from torch import Tensor, nn

from mfh.data.pairs import Nested, map_tensors, tensors
from mfh.errors import FOREIGN, InputError, close_names, in_a_line
from mfh.networks.calling import call, takes_by_name
from mfh.networks.cut import OneInputLogits, silenced
from mfh.networks.layers import as_logits

Format = Literal["pt2", "onnx", "safetensors"]
#: Where a file keeps what it is, as JSON: an extra file of a .pt2, a property of an .onnx, metadata of a .safetensors.
FACTS = "mfh.json"
#: A function from inputs to logits, (N, K, ...).
Runner = Callable[[Nested], Tensor]


class Exporter(ABC):
    """One format.

    Attributes:
        suffix: Ending of its files, without the dot.
    """

    suffix: Format

    @abstractmethod
    def write(self, network: nn.Module, example: Nested, facts: str) -> bytes:
        """The content of a file.

        Args:
            network: A network on the CPU, in eval mode.
            example: Inputs of two samples or more.
            facts: What the network is, as JSON.

        Raises:
            InputError: The network cannot be exported so.
        """

    @abstractmethod
    def runner(self, content: bytes, network: nn.Module, threads: int = 0) -> Runner:
        """A function that runs what `write` made.

        Args:
            content: The content of a file.
            network: The network, whose class a format of weights alone needs.
            threads: Number of threads, for a runtime that has its own; 0 leaves it to the runtime.
        """

    @abstractmethod
    def loading(self, name: str, network: nn.Module, example: Nested) -> str:
        """Python code that loads a file without `mfh`, runs it on inputs `x` and reads its `facts`.

        Args:
            name: Name of the file.
            network: The network.
            example: Its inputs.
        """


class Program(Exporter):
    """`torch.export`: a program of PyTorch's own operators, which needs torch alone."""

    suffix: Format = "pt2"

    def write(self, network: nn.Module, example: Nested, facts: str) -> bytes:  # noqa: D102 (as in Exporter)
        program = _traced(OneInputLogits(network, example), (example,), network, self.suffix)
        with silenced():
            torch.export.save(program, content := io.BytesIO(), extra_files={FACTS: facts})
        return content.getvalue()

    def runner(self, content: bytes, network: nn.Module, threads: int = 0) -> Runner:  # noqa: ARG002, D102
        with silenced():
            return torch.export.load(io.BytesIO(content)).module()

    def loading(self, name: str, network: nn.Module, example: Nested) -> str:  # noqa: ARG002, D102
        inputs = "dict(x)" if isinstance(example, Mapping) else _as_tensors(example)
        return f"""import json
import torch
extra = {{"{FACTS}": ""}}
student = torch.export.load("{name}", extra_files=extra).module()
logits = student({inputs})  # x: {_structure(example)}
facts = json.loads(extra["{FACTS}"])"""


class Onnx(Exporter):
    """ONNX, for onnxruntime and other runtimes. Nested inputs become one input for each tensor."""

    suffix: Format = "onnx"

    def write(self, network: nn.Module, example: Nested, facts: str) -> bytes:  # noqa: D102
        _need_onnx()
        flat = tuple(tensors(example))
        program = _traced(_Flat(network, example), flat, network, self.suffix)
        try:
            with silenced():
                made = torch.onnx.export(
                    program,
                    dynamo=True,
                    dynamic_shapes=_shapes(flat, of_one=True),  # names the axis
                    input_names=input_names(example),
                    output_names=["logits"],
                    verbose=False,
                )
                assert made is not None
                model = made.model_proto
                model.metadata_props.add(key=FACTS, value=facts)
                return model.SerializeToString()  # type: ignore[no-any-return]
        except FOREIGN as error:
            raise InputError(
                f"{type(network).__name__} cannot be exported to .onnx ({in_a_line(error)[:200]}); export it as .pt2"
            ) from error

    def runner(self, content: bytes, network: nn.Module, threads: int = 0) -> Runner:  # noqa: ARG002, D102
        import onnxruntime

        options = onnxruntime.SessionOptions()
        options.log_severity_level = 3  # errors
        options.intra_op_num_threads = threads
        session = onnxruntime.InferenceSession(content, options, providers=["CPUExecutionProvider"])

        def run(inputs: Nested) -> Tensor:
            arrays = [tensor.numpy() for tensor in tensors(inputs)]
            return torch.from_numpy(session.run(None, dict(zip(input_names(inputs), arrays, strict=True)))[0])

        return run

    def loading(self, name: str, network: nn.Module, example: Nested) -> str:  # noqa: ARG002, D102
        arrays = zip(input_names(example), _accesses(example), tensors(example), strict=True)
        given = ", ".join(f'"{key}": {place}.astype("{kind(tensor)}")' for key, place, tensor in arrays)
        return f"""import json
import onnxruntime
student = onnxruntime.InferenceSession("{name}")
logits = student.run(None, {{{given}}})[0]  # x: {_structure(example, "array")}
facts = json.loads(student.get_modelmeta().custom_metadata_map["{FACTS}"])"""


class Weights(Exporter):
    """Weights alone, as safetensors. Whoever loads them needs the network's class."""

    suffix: Format = "safetensors"

    def write(self, network: nn.Module, example: Nested, facts: str) -> bytes:  # noqa: ARG002, D102
        from safetensors.torch import save

        # Tensors that share memory, such as tied weights, cannot be written as they are.
        weights = {name: tensor.clone().contiguous() for name, tensor in network.state_dict().items()}
        return save(weights, metadata={FACTS: facts})

    def runner(self, content: bytes, network: nn.Module, threads: int = 0) -> Runner:  # noqa: ARG002, D102
        from safetensors.torch import load

        filled = copy.deepcopy(network)
        for value in filled.state_dict().values():  # whatever is not in the file must show
            value.zero_()
        filled.load_state_dict(load(content))
        return lambda inputs: as_logits(call(filled, inputs))

    def loading(self, name: str, network: nn.Module, example: Nested) -> str:  # noqa: D102
        inputs = "**x" if takes_by_name(network, example) else _as_tensors(example)
        logits = "" if isinstance(call(network, example), Tensor) else ".logits"
        return f"""import json
import torch
from safetensors import safe_open
from safetensors.torch import load_file
student = make_student().eval()  # your function that makes the {type(network).__name__}, with the same arguments
student.load_state_dict(load_file("{name}"))
logits = student({inputs}){logits}  # x: {_structure(example)}
with safe_open("{name}", "pt") as file:
    facts = json.loads(file.metadata()["{FACTS}"])"""


#: Ending -> format.
FORMATS: dict[str, Exporter] = {exporter.suffix: exporter for exporter in (Program(), Onnx(), Weights())}


def format_of(path: Path | None, given: str | None) -> Exporter:
    """The format of a file, by its ending or as given.

    Args:
        path: The file; None where it is still to be named.
        given: "pt2", "onnx" or "safetensors"; None to go by the ending, or .pt2 without one.

    Raises:
        InputError: There is no such format, or the two differ.
    """
    name = given or ("pt2" if path is None else path.suffix.removeprefix("."))
    if name not in FORMATS:
        what = f"format is {name!r}" if given else f"{path} ends in {'.' + name if name else 'nothing'!r}"
        raise InputError(f"{what}; choose {', '.join(FORMATS)}; {close_names(name, list(FORMATS))}")
    if path is not None and path.suffix != f".{name}":
        raise InputError(f"{path} does not end in .{name}, the format; name the file so, or leave --format out")
    return FORMATS[name]


def quantised(content: bytes) -> bytes:
    """An ONNX file with 8-bit weights, whose activations are quantised while it runs.

    Args:
        content: The content of an .onnx file.

    Raises:
        InputError: The runtime cannot quantise it.
    """
    _need_onnx()
    import onnx

    try:
        with silenced(), tempfile.TemporaryDirectory() as folder:
            from onnxruntime.quantization import QuantType, quantize_dynamic

            path = Path(folder) / "int8.onnx"
            # Signed weights of convolutions have no kernel in the CPU runtime.
            quantize_dynamic(onnx.load_from_string(content), path, weight_type=QuantType.QUInt8)
            return path.read_bytes()
    except FOREIGN as error:
        raise InputError(
            f"onnxruntime cannot write 8-bit weights for this student ({in_a_line(error)}); leave --int8 out"
        ) from error


def input_names(inputs: Nested, prefix: str = "") -> list[str]:
    """A name for each tensor of a nested input, in order: "input", or the keys and positions that lead to it.

    Example:
        >>> input_names(torch.zeros(1)), input_names({"sound": torch.zeros(1), "eyes": (torch.zeros(1),) * 2})
        (['input'], ['sound', 'eyes.0', 'eyes.1'])
    """
    return [name or "input" for name in _names(inputs, prefix)]


def _names(inputs: Nested, prefix: str) -> Iterator[str]:
    if isinstance(inputs, Tensor):
        yield prefix
        return
    for key, value in _entries(inputs):
        yield from _names(value, f"{prefix}.{key}" if prefix else str(key))


def _entries(inputs: Nested) -> Any:
    """Keys or positions with the values that lie there."""
    if hasattr(inputs, "items"):
        return inputs.items()
    return enumerate(inputs) if isinstance(inputs, tuple | list) else ()


def kind(tensor: Tensor) -> str:
    """The type of a tensor's entries, as torch and numpy call it."""
    return str(tensor.dtype).removeprefix("torch.")


def _as_tensors(example: Nested) -> str:
    """The inputs `x` as code: one array becomes a tensor of the right type, nested ones are tensors already."""
    return f"torch.as_tensor(x, dtype={example.dtype})" if isinstance(example, Tensor) else "x"


def _accesses(inputs: Nested, place: str = "x") -> Iterator[str]:
    """Code for each tensor of the inputs `x`, in order."""
    if isinstance(inputs, Tensor):
        yield place
        return
    for key, value in _entries(inputs):
        yield from _accesses(value, f"{place}[{key!r}]")


def _structure(inputs: Nested, leaf: str = "tensor") -> str:
    """The structure of inputs, with a shape for an array alone, and a word for the tensors of nested ones."""
    if isinstance(inputs, Tensor):
        return f"an array, ({', '.join(['N', *map(str, inputs.shape[1:])])})"
    return _nested_structure(inputs, leaf)


def _nested_structure(inputs: Nested, leaf: str) -> str:
    if isinstance(inputs, Tensor):
        return leaf
    if hasattr(inputs, "items"):
        return "{" + ", ".join(f"{key!r}: {_nested_structure(value, leaf)}" for key, value in inputs.items()) + "}"
    if isinstance(inputs, tuple | list):
        inner = ", ".join(_nested_structure(one, leaf) for one in inputs)
        return f"[{inner}]" if isinstance(inputs, list) else f"({inner},)"
    return repr(inputs)


@dataclass(eq=False)
class _Places:
    """Fills a nested structure with tensors, in order."""

    example: Nested

    def fill(self, values: tuple[Tensor, ...]) -> Nested:
        left = iter(values)
        return map_tensors(lambda _: next(left), self.example)


class _Flat(nn.Module):
    """A network of one nested input as one of several tensors."""

    def __init__(self, network: nn.Module, example: Nested) -> None:
        super().__init__()
        self.network, self.places = network, _Places(example)

    def forward(self, *values: Tensor) -> Tensor:
        return as_logits(call(self.network, self.places.fill(values)))


def _traced(
    module: nn.Module, inputs: tuple[Nested, ...], network: nn.Module, suffix: str
) -> torch.export.ExportedProgram:
    """The program of a network, for any number of samples.

    Raises:
        InputError: What it does depends on the values of its inputs, or on their number.
    """
    try:
        with silenced():
            return torch.export.export(module, inputs, dynamic_shapes=_shapes(inputs, of_one=isinstance(module, _Flat)))
    except FOREIGN as error:
        raise InputError(
            f"{type(network).__name__} cannot be exported to .{suffix}: its forward has steps that cannot be traced "
            f"for every input ({in_a_line(error)[:200]}); export it as .safetensors, which holds its weights alone and "
            "needs its class to be loaded"
        ) from error


def _shapes(inputs: tuple[Nested, ...], *, of_one: bool) -> Any:
    """The free sizes of inputs: their batch. With `of_one`, they are one argument `*values`."""
    batch = torch.export.Dim("batch", min=1)
    shapes = map_tensors(lambda _: {0: batch}, inputs)  # type: ignore[arg-type,return-value]
    return (shapes,) if of_one else shapes


def _need_onnx() -> None:
    try:
        import onnx  # noqa: F401
        import onnxruntime  # noqa: F401
        import onnxscript  # noqa: F401
    except ImportError as error:
        raise InputError(
            f"{error.name or 'onnx'} is not installed, which .onnx files need; pip install 'mfh[export]'"
        ) from None
