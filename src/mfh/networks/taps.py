"""Features of named layers, read by hooks that stay for a whole training, channels first."""

from collections.abc import Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from types import TracebackType
from typing import Any, Literal

from torch import Tensor, nn

from mfh.data.pairs import Nested
from mfh.errors import InputError
from mfh.networks.calling import call
from mfh.networks.layers import check_activation, check_channel_dim, default_layer, find_layer, hooked
from mfh.networks.modes import original, original_layer

#: Layers that count channels along the last dimension; all others do so along dimension 1.
_CHANNELS_LAST = (
    nn.Linear,
    nn.LayerNorm,
    nn.Embedding,
    nn.TransformerEncoder,
    nn.TransformerDecoder,
    nn.TransformerEncoderLayer,
    nn.TransformerDecoderLayer,
)


@dataclass(frozen=True)
class Tap:
    """A place in a network where features are read.

    Args:
        name: Name of the features.
        layer: Name of the module, from `named_modules()`.
        at: Which side of the module: its "output", or its "input".
        channel_dim: Dimension that counts channels where there are more than two; the others are positions.
    """

    name: str
    layer: str
    at: Literal["input", "output"]
    channel_dim: int

    def channels_first(self, features: Tensor) -> Tensor:
        """The features as (N, C, *positions).

        Raises:
            InputError: They have no such dimension.
        """
        if features.ndim == 2:
            return features
        return features.movedim(check_channel_dim(features, self.channel_dim, self.layer), 1)

    def back(self, features: Tensor) -> Tensor:
        """Undo `channels_first`."""
        return features if features.ndim == 2 else features.movedim(1, self.channel_dim)


def find_taps(
    network: nn.Module, layers: Sequence[str] | None, role: str, channel_dim: int | None = None
) -> tuple[Tap, ...]:
    """Where a network's features are read.

    Args:
        network: The network.
        layers: Names of layers, whose outputs are meant; None means the input of `default_layer`, the penultimate
            layer.
        role: "teacher" or "student", for messages.
        channel_dim: Dimension of the layers' outputs that counts channels. None takes the last one for linear layers,
            layer normalisation, embeddings and transformers, and otherwise dimension 1. The penultimate layer has the
            channels that the last layer reads, and outputs (N, C) have only one dimension for them; both need no
            `channel_dim`.

    Raises:
        InputError: The network has no such layer; the message lists close names.
    """
    network = original(network)
    if layers is None:
        last = default_layer(network, role)
        dim = -1 if isinstance(network.get_submodule(last), _CHANNELS_LAST) else 1
        return (Tap(f"input of {last or type(network).__name__}", last, "input", dim),)
    taps = []
    for layer in dict.fromkeys(map(original_layer, layers)):
        try:
            module = find_layer(network, layer)
        except InputError as error:
            raise InputError(f"the {role}'s layer: {error}") from None
        usual = -1 if isinstance(module, _CHANNELS_LAST) else 1
        taps.append(Tap(layer, layer, "output", usual if channel_dim is None else channel_dim))
    return tuple(taps)


class Reader:
    """Reads features in every forward of a network, by hooks that are there inside its `with` block.

    Args:
        network: The network.
        taps: Where to read, as `find_taps` finds it for this network.
    """

    def __init__(self, network: nn.Module, taps: Sequence[Tap]) -> None:
        self.network, self.taps = original(network), tuple(taps)
        self._seen: dict[str, Tensor] = {}
        self._counts: dict[str, int] = {}
        self._handles: list[Any] = []
        self.clear()

    def __enter__(self) -> "Reader":
        for tap in self.taps:
            module = self.network.get_submodule(tap.layer)
            if tap.at == "output":
                self._handles.append(module.register_forward_hook(self._after(tap)))
            else:
                self._handles.append(module.register_forward_pre_hook(self._before(tap)))
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        for handle in self._handles:
            handle.remove()
        self._handles.clear()
        self.clear()

    def clear(self) -> None:
        """Forget what was read. Call it before the forward whose features are wanted."""
        self._seen.clear()
        self._counts = dict.fromkeys((tap.name for tap in self.taps), 0)

    def take(self, samples: int) -> dict[str, Tensor]:
        """The features of the last forward, (N, C, *positions) by name; they are forgotten here.

        Args:
            samples: Number of samples N.

        Raises:
            InputError: A layer did not run exactly once, or does not return features of all samples.
        """
        found = {}
        for tap in self.taps:
            count = self._counts[tap.name]
            if count != 1:
                raise InputError(
                    f"layer {tap.layer!r} of {type(self.network).__name__} ran {count} times in one forward, but "
                    "exactly once was expected; name another layer"
                )
            found[tap.name] = tap.channels_first(check_activation(self._seen[tap.name], tap.layer, samples))
        self.clear()
        return found

    def _after(self, tap: Tap) -> Any:
        def read(_module: nn.Module, _arguments: Any, output: Any) -> None:
            # A copy: operations in place may follow, and features are what the layer returns.
            self._seen[tap.name] = output.clone() if isinstance(output, Tensor) else output
            self._counts[tap.name] += 1

        return read

    def _before(self, tap: Tap) -> Any:
        def read(_module: nn.Module, arguments: tuple[Any, ...]) -> None:
            self._seen[tap.name] = arguments[0] if arguments else None  # type: ignore[assignment]
            self._counts[tap.name] += 1

        return read


def layer_at(network: nn.Module, tap: Tap, inputs: Nested, preferred: str = "") -> str:
    """The layer whose output is what a tap reads.

    Args:
        network: The network, in eval mode.
        tap: The tap.
        inputs: A batch of the network's inputs.
        preferred: The layer to name where it is one of several with the same output, as a container and its last layer.

    Raises:
        InputError: What it reads is no layer's output.
    """
    if tap.at == "output":
        return tap.layer
    network, seen, read = original(network), list[tuple[str, Any]](), list[Any]()
    handle = network.get_submodule(tap.layer).register_forward_pre_hook(lambda _module, args: read.extend(args[:1]))
    with ExitStack() as stack:
        stack.callback(handle.remove)
        for name, module in network.named_modules():
            stack.enter_context(hooked(module, _noting(name, seen)))
        call(network, inputs)
    names = [name for name, output in seen if name and read and output is read[0]]
    if not names:
        raise InputError(
            f"the {tap.name} is no layer's output in {type(network).__name__}, so its channels cannot be scored; name "
            "the layer that the method reads (teacher_layers)"
        )
    # Of a layer and the containers that end with it, the layer ends first.
    return preferred if preferred in names else names[0]


def _noting(name: str, seen: list[tuple[str, Any]]) -> Any:
    def note(_module: nn.Module, _arguments: Any, output: Any) -> None:
        seen.append((name, output))

    return note
