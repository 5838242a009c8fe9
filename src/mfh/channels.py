"""Read, replace and continue from the output of a named layer of any network.

`split` cuts a network at a layer into a *trunk* (run once per sample) and a *tail* (run as often as needed).
The cut is found by tracing and verified against whole forwards; a network that cannot be traced is replayed
whole with the layer's output replaced, which is always right and never fast.
"""

import hashlib
import io
import logging
import sys
import warnings
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager, redirect_stderr, redirect_stdout
from dataclasses import dataclass
from typing import Any, NamedTuple

import torch
from torch import Tensor, fx, nn
from torch.utils._pytree import tree_flatten, tree_leaves

from mfh.errors import InputError, close_names
from mfh.pairs import Nested, map_tensors, num_samples

log = logging.getLogger("mfh")


def find_layer(model: nn.Module, layer: str) -> nn.Module:
    """The submodule called `layer`.

    Raises:
        InputError: the network has no such layer; close names are listed.
    """
    modules: dict[str, nn.Module] = dict(model.named_modules(remove_duplicate=False))
    if not layer or layer not in modules:
        known = [name for name in modules if name]
        raise InputError(f"{type(model).__name__} has no layer {layer!r}; {close_names(layer, known)}")
    return modules[layer]


def as_logits(output: Any) -> Tensor:
    """The logits in a network's output: the output itself, or its `.logits`.

    Raises:
        InputError: the output is something else, or has no class dimension.
    """
    logits = output if isinstance(output, Tensor) else getattr(output, "logits", None)
    if not isinstance(logits, Tensor):
        raise InputError(
            f"a network returned a {type(output).__name__}; a tensor of logits (N, K), or an object with .logits, "
            "was expected: wrap the network in a module that returns its logits"
        )
    if logits.ndim < 2:
        raise InputError(
            f"a network returned logits of shape {tuple(logits.shape)}; (N, K) with one column per class was expected"
        )
    return logits


@contextmanager
def unfused_attention() -> Iterator[None]:
    """Keep attention off PyTorch's fused path, which skips hooks and returns nested tensors."""
    before = torch.backends.mha.get_fastpath_enabled()
    try:
        torch.backends.mha.set_fastpath_enabled(False)
        yield
    finally:
        torch.backends.mha.set_fastpath_enabled(before)


@contextmanager
def eager() -> Iterator[None]:
    """Run what `torch.compile` made as the Python it was made from: compiled code does not call hooks added later."""
    if "torch._dynamo" not in sys.modules:  # nothing is compiled, and importing it takes a second
        yield
        return
    with torch.compiler.set_stance("force_eager"):
        yield


def original(model: nn.Module) -> nn.Module:
    """The network that `torch.compile` was given, or the network itself."""
    inner = model._modules.get("_orig_mod")
    return model if inner is None else inner


def original_layer(layer: str) -> str:
    """A layer's name in the `original` network."""
    return layer.removeprefix("_orig_mod.")


def devices_of(model: nn.Module) -> set[torch.device]:
    """All devices that hold a part of the network."""
    return {tensor.device for tensor in (*model.parameters(), *model.buffers())}


def check_one_device(model: nn.Module, what: str) -> None:
    """Refuse a network that is spread over several devices.

    Raises:
        InputError: it is.
    """
    devices = devices_of(model)
    if len(devices) > 1:
        names = ", ".join(sorted(map(str, devices)))
        raise InputError(f"the {what} is spread over several devices ({names}); this works on one: move it there")


def check_weights(*models: nn.Module) -> None:
    """Refuse networks without weights, on the meta device.

    Raises:
        InputError: there is one.
    """
    for model in models:
        if torch.device("meta") in devices_of(model):
            raise InputError(
                f"{type(model).__name__} has parts on the meta device, which holds no values; load its weights first"
            )


@contextmanager
def evaluating(*models: nn.Module) -> Iterator[None]:
    """Eval mode without gradients; every submodule's mode is restored, also after an exception.

    Attention's fused path is off meanwhile, and compiled networks run uncompiled. The global random state is restored
    as well: merely iterating over a DataLoader draws from it.

    Raises:
        InputError: a network has no weights.
    """
    check_weights(*models)
    modes = [(module, module.training) for model in models for module in model.modules()]
    try:
        for model in models:
            model.eval()
        # A caller's inference mode is lifted: the tail's matrix comes from gradients.
        with (
            unfused_attention(),
            eager(),
            torch.random.fork_rng(devices=[]),
            torch.inference_mode(False),
            torch.no_grad(),
        ):
            yield
    finally:
        for module, mode in modes:
            module.training = mode


def find_device(device: torch.device | str | None = None) -> torch.device:
    """A device that is there; without a name a GPU if there is one, otherwise the CPU.

    Raises:
        InputError: there is no such device.
    """
    try:
        found = torch.device(device or ("cuda" if torch.cuda.is_available() else "cpu"))
        torch.empty(0, device=found)
    except (RuntimeError, AssertionError, NotImplementedError):
        raise InputError(
            f"there is no device {str(device)!r} here; choose 'cpu', or install a PyTorch built for it"
        ) from None
    return found


@contextmanager
def placed(device: torch.device | str | None, *models: nn.Module) -> Iterator[None]:
    """Move the networks to `device` and back afterwards.

    None leaves them where they are, and so does a network that is spread over several devices: it has its places.

    Raises:
        InputError: there is no such device, or a network has no weights.
    """
    check_weights(*models)
    if device is None:
        yield
        return
    found = find_device(device)
    before = [(model, device_of(model)) for model in models if len(devices_of(model)) < 2]
    try:
        for model, _ in before:
            model.to(found)
        yield
    finally:
        for model, home in before:
            model.to(home)


def device_of(model: nn.Module) -> torch.device:
    """Where the network's first parameter or buffer is; the CPU if it has none."""
    for tensor in (*model.parameters(), *model.buffers()):
        return tensor.device
    return torch.device("cpu")


def fingerprint(model: nn.Module) -> str:
    """A digest of all weights and buffers (names, types, shapes, values), the same on every device."""
    check_weights(model)
    digest = hashlib.sha256()
    for name, tensor in original(model).state_dict().items():
        if isinstance(tensor, Tensor):
            digest.update(f"{name}:{tensor.dtype}:{tuple(tensor.shape)};".encode())
            digest.update(tensor.detach().cpu().contiguous().reshape(-1).view(torch.uint8).numpy().data)
    return digest.hexdigest()[:32]


def check_activation(output: Any, layer: str, samples: int | None = None) -> Tensor:
    """The layer's output, if it is a tensor with samples along dim 0.

    Raises:
        InputError: it is not.
    """
    if not isinstance(output, Tensor):
        raise InputError(
            f"layer {layer!r} returns a {type(output).__name__}; a tensor was expected: choose a layer whose output "
            "is one tensor, or wrap it"
        )
    if not output.is_floating_point():
        raise InputError(
            f"layer {layer!r} returns {output.dtype}; floating point activations were expected: choose a later layer"
        )
    if output.ndim < 2 or (samples is not None and len(output) != samples):
        raise InputError(
            f"layer {layer!r} returns shape {tuple(output.shape)} for {samples} samples; samples along dim 0 and at "
            "least one more dimension were expected"
        )
    return output


def check_channel_dim(activation: Tensor, channel_dim: int, layer: str) -> int:
    """`channel_dim` counted from the front.

    Raises:
        InputError: there is no such dimension, or it is the samples'.
    """
    if not -activation.ndim <= channel_dim < activation.ndim or channel_dim % activation.ndim == 0:
        raise InputError(
            f"channel_dim is {channel_dim}, but layer {layer!r} returns shape {tuple(activation.shape)}; "
            f"choose 1 to {activation.ndim - 1} (dim 0 counts samples)"
        )
    return channel_dim % activation.ndim


def to_channels(activation: Tensor, channel_dim: int) -> Tensor:
    """Rearrange a layer's output to (N, C, P): samples, channels, positions."""
    moved = activation.movedim(channel_dim, 1)
    return moved.reshape(len(moved), moved.shape[1], -1)


def from_channels(channels: Tensor, shape: torch.Size, channel_dim: int) -> Tensor:
    """Undo `to_channels` for an output whose shape, but for the number of samples, is `shape`."""
    moved = torch.empty(shape, device="meta").movedim(channel_dim, 1).shape
    return channels.reshape(len(channels), *moved[1:]).movedim(1, channel_dim)


def capture(model: nn.Module, layer: str, inputs: Nested) -> tuple[Tensor, Tensor]:
    """Run the network once and read one layer on the way.

    Args:
        model: returns logits.
        layer: a name from `named_modules()`.
        inputs: the network's one argument.

    Returns:
        The layer's output (a copy, so later in-place changes do not reach it) and the logits.

    Raises:
        InputError: there is no such layer, it did not run exactly once, or its output is not a tensor.
    """
    (activation,), logits = capture_all(model, [layer], inputs)
    return activation, logits


def capture_all(model: nn.Module, layers: Sequence[str], inputs: Nested) -> tuple[list[Tensor], Tensor]:
    """`capture` of several layers in one run: their outputs in the given order, and the logits."""
    captured: dict[str, list[Tensor]] = {layer: [] for layer in layers}
    samples = num_samples(inputs)

    def reader(layer: str) -> Callable[[nn.Module, Any, Any], None]:
        def read(_module: nn.Module, _args: Any, output: Any) -> None:
            captured[layer].append(check_activation(output, layer, samples).clone())

        return read

    with ExitStack() as stack:
        for layer in captured:
            stack.enter_context(_hook(find_layer(model, layer), reader(layer)))
        logits = as_logits(model(inputs))
    for layer, outputs in captured.items():
        _check_once(layer, len(outputs))
    return [captured[layer][0] for layer in layers], logits


def replace(model: nn.Module, layer: str, inputs: Nested, activation: Tensor) -> Tensor:
    """Run the network with one layer's output replaced.

    Args:
        model: returns logits.
        layer: a name from `named_modules()`.
        inputs: the network's one argument.
        activation: what the layer shall return instead.

    Returns:
        The logits.

    Raises:
        InputError: there is no such layer, or it did not run exactly once.
    """
    calls = 0

    def put(_module: nn.Module, _args: Any, _output: Any) -> Tensor:
        nonlocal calls
        calls += 1
        # A copy: in-place operations after the layer must not change the caller's tensor.
        return activation.clone()

    with _hook(find_layer(model, layer), put):
        logits = as_logits(model(inputs))
    _check_once(layer, calls)
    return logits


@contextmanager
def _hook(module: nn.Module, function: Callable[[nn.Module, Any, Any], Any]) -> Iterator[None]:
    handle = module.register_forward_hook(function)
    try:
        with eager():
            yield
    finally:
        handle.remove()


def _check_once(layer: str, calls: int) -> None:
    if calls != 1:
        raise InputError(
            f"layer {layer!r} ran {calls} times in one forward; exactly once is needed"
            + (": give each use its own module, or choose another layer" if calls else ": choose a layer that is used")
        )


class Passed(NamedTuple):
    """One batch through a split network.

    Args:
        activation: the layer's output, shape as the layer returns it.
        logits: (N, K).
        bypass: what the tail needs besides the activation, to be handed back to `Split.tail`.
    """

    activation: Tensor
    logits: Tensor
    bypass: Nested


@dataclass(frozen=True)
class LinearHead:
    """The linear layer that a tail begins with: the tail is `rest(activation.flatten(1) @ weight.T + bias)`.

    Args:
        weight: (H, inputs).
        bias: (H,) or None.
        rest: (output of the linear layer, bypass) -> logits.
    """

    weight: Tensor
    bias: Tensor | None
    rest: Callable[[Tensor, Nested], Tensor]


class Split:
    """A network in two pieces, cut at a layer. Made by `split`.

    Attributes:
        traced: whether the tail runs alone; otherwise it is a whole forward with the activation replaced.
        head: the linear layer the tail begins with, if it does and the tail runs alone.
    """

    def __init__(self, model: nn.Module, layer: str, cut: "_Cut | None" = None, inputs: Nested = None) -> None:
        self.model, self.layer = model, layer
        self.traced = cut is not None
        self.head: LinearHead | None = None
        self._cut, self._traced_for = cut, _signature(inputs)

    def __call__(self, inputs: Nested) -> Passed:
        """Run the whole network once and keep what lies at the cut."""
        # A trace holds for inputs like those it was verified on; others take the way that is always right.
        if self._cut is not None and _signature(inputs) == self._traced_for:
            activation, *rest = self._cut.trunk(*self._cut.arguments(inputs))
            bypass = self._cut.keep(rest, len(activation))
            if bypass is not None:
                return Passed(activation, self.tail(activation, bypass), bypass)
        return Passed(*capture(self.model, self.layer, inputs), Whole(inputs))

    def tail(self, activation: Tensor, bypass: Nested) -> Tensor:
        """Continue from the layer: activation as the layer returns it -> logits (N, K).

        Differentiable with respect to `activation`.
        """
        if self._cut is None or isinstance(bypass, Whole):
            return replace(self.model, self.layer, bypass.inputs, activation)
        return as_logits(self._cut.tail(activation.clone(), *self._cut.complete(bypass, len(activation))))


class Whole(NamedTuple):
    """A network's whole input, for a tail that is a whole forward with the activation replaced.

    Args:
        inputs: the network's one argument.
    """

    inputs: Nested


def _signature(inputs: Nested) -> Any:
    """What all batches of one kind have in common: structure, shapes of one sample, and what is not a tensor."""
    leaves, structure = tree_flatten(inputs)
    return structure, [leaf.shape[1:] if isinstance(leaf, Tensor) else leaf for leaf in leaves]


def split(model: nn.Module, layer: str, inputs: Nested) -> Split:
    """Cut a network at a layer.

    Call it, and use the result, under `evaluating(model)`.

    Args:
        model: returns logits.
        layer: a name from `named_modules()`.
        inputs: a batch of real data; the cut is verified on it, at two batch sizes and with the activation
            changed, against whole forwards.

    Raises:
        InputError: there is no such layer, it does not run exactly once, or its output is not a tensor.
    """
    find_layer(model, layer)
    largest = min(num_samples(inputs), 8)
    if largest == 1:
        examples = [inputs, map_tensors(lambda tensor: torch.cat([tensor, tensor]), inputs)]
    else:
        examples = [_first(inputs, largest // 2), _first(inputs, largest)]
    # Errors of the layer itself are the caller's: raise them before any tracing hides them.
    truths = [capture(model, layer, example) for example in examples]
    for trace in (_trace_symbolically, _trace_by_export):
        try:
            traced = trace(model, layer, examples[-1])
            cut, bypass = _prepare(traced, examples)
            candidate = Split(model, layer, cut, inputs)
            if all(_agrees(candidate, e, *truth) for e, truth in zip(examples, truths, strict=True)):
                candidate.head = _find_head(candidate, traced, cut, bypass, examples[-1])
                return candidate
        except Exception as error:  # tracers fail in many ways, and each means: try the next
            log.debug("%s of %s at %r failed: %s", trace.__name__, type(model).__name__, layer, error)
    log.warning(
        "%s could not be cut at layer %r; every evaluation of its tail runs the whole network",
        type(model).__name__,
        layer,
    )
    return Split(model, layer)


def _first(inputs: Nested, count: int) -> Nested:
    return map_tensors(lambda tensor: tensor[:count], inputs)


@dataclass(frozen=True)
class _Cut:
    """Trunk and tail as graph modules, and what the tail takes besides the activation.

    `slots` has one entry per value that bypasses the layer: None for a tensor with samples along dim 0, which is kept
    with the activation; otherwise a function from the batch size to the value. `arguments` turns a network's input
    into the trunk's.
    """

    trunk: fx.GraphModule
    tail: fx.GraphModule
    arguments: Callable[[Nested], list[Any]]
    slots: tuple[Callable[[int], Any] | None, ...]

    def keep(self, values: list[Any], size: int) -> tuple[Tensor, ...] | None:
        """The values to keep with a batch; None if one is not what its slot says, so that the cut does not hold."""
        for value, slot in zip(values, self.slots, strict=True):
            if not (len(value) == size if slot is None else _same(value, slot(size))):
                return None
        return tuple(value for value, slot in zip(values, self.slots, strict=True) if slot is None)

    def complete(self, bypass: tuple[Tensor, ...], size: int) -> list[Any]:
        kept = iter(bypass)
        return [next(kept) if slot is None else slot(size) for slot in self.slots]


def _prepare(traced: "_Traced", examples: list[Nested]) -> tuple[_Cut, list[fx.Node]]:
    trunk, tail, bypass = _cut_graph(traced.graph_module, traced.marked)
    sizes = [num_samples(example) for example in examples]
    runs = [trunk(*traced.arguments(example))[1:] for example in examples]
    slots = tuple(_slot(small, large, sizes) for small, large in zip(*runs, strict=True))
    return _Cut(trunk, tail, traced.arguments, slots), bypass


def _slot(small: Any, large: Any, sizes: list[int]) -> Callable[[int], Any] | None:
    """What a bypassing value is, judged by what it was for two batches of different size."""
    if isinstance(small, Tensor) and small.ndim and [len(small), len(large)] == sizes:
        return None
    if _same(small, large):
        return lambda _size: small
    if isinstance(small, int) and small % sizes[0] == 0 and small // sizes[0] * sizes[1] == large:
        return lambda size: small // sizes[0] * size
    raise InputError(f"a {type(small).__name__} that bypasses the layer is neither per sample nor constant")


def _same(a: Any, b: Any) -> bool:
    if isinstance(a, Tensor) and isinstance(b, Tensor):
        return a.shape == b.shape and torch.equal(a, b)
    return bool(a == b)


def _cut_graph(graph_module: fx.GraphModule, marked: fx.Node) -> tuple[fx.GraphModule, fx.GraphModule, list[fx.Node]]:
    nodes = list(graph_module.graph.nodes)
    after = _dependents(nodes, marked)
    constants = {node for node in nodes if node.op == "get_attr"}
    bypass = [
        node
        for node in nodes
        if node not in after and node not in constants and any(u in after and u is not marked for u in node.users)
    ]

    def copy(graph: fx.Graph, chosen: list[fx.Node], env: dict[fx.Node, fx.Node]) -> None:
        for node in chosen:
            env[node] = graph.node_copy(node, lambda n: env[n])

    trunk = fx.Graph()
    env: dict[fx.Node, fx.Node] = {}
    copy(trunk, [n for n in nodes if n.op != "output" and (n not in after or n is marked)], env)
    trunk.output((env[marked], *(env[node] for node in bypass)))

    tail = fx.Graph()
    env = {node: tail.placeholder(f"given_{i}") for i, node in enumerate([marked, *bypass])}
    copy(
        tail,
        [n for n in nodes if n in constants or (n in after and n is not marked and n.op != "output")],
        env,
    )
    result = next(n for n in nodes if n.op == "output").args[0]
    if isinstance(result, (tuple, list)) and len(result) == 1:  # an exported program returns a flat list
        result = result[0]
    tail.output(fx.map_arg(result, lambda n: env[n]))
    return fx.GraphModule(graph_module, trunk), fx.GraphModule(graph_module, tail), bypass


def _dependents(nodes: list[fx.Node], start: fx.Node) -> set[fx.Node]:
    after = {start}
    for node in nodes:
        if any(source in after for source in node.all_input_nodes):
            after.add(node)
    return after


def _find_head(
    candidate: Split, traced: "_Traced", cut: _Cut, bypass: list[fx.Node], example: Nested
) -> LinearHead | None:
    """The tail's first linear layer, where the activation goes through it (flattened or not) and nowhere else."""
    graph_module, node = traced.graph_module, traced.marked
    while len(node.users) == 1:
        node = next(iter(node.users))
        module = graph_module.get_submodule(str(node.target)) if node.op == "call_module" else None
        if isinstance(module, nn.Linear):
            break
        flattens = isinstance(module, nn.Flatten) and (module.start_dim, module.end_dim) == (1, -1)
        flattens |= node.target in (torch.flatten, "flatten") and node.args[1:] == (1,) and not node.kwargs
        if not (flattens or isinstance(module, nn.Identity)):
            return None
    else:
        return None
    _, rest, rest_bypass = _cut_graph(graph_module, node)
    if not set(rest_bypass) <= set(bypass):
        return None
    positions = [bypass.index(n) for n in rest_bypass]

    def run(hidden: Tensor, kept: Nested) -> Tensor:
        values = cut.complete(kept, len(hidden))
        return as_logits(rest(hidden, *(values[i] for i in positions)))

    head = LinearHead(module.weight, module.bias, run)
    activation, logits, kept = candidate(example)
    flat = activation.flatten(1)
    if flat.shape[1] != module.in_features:  # applied position by position
        return None
    return head if _close(run(nn.functional.linear(flat, head.weight, head.bias), kept), logits) else None


class _OneInput(nn.Module):
    """Gives every network one input and its own name, so that default arguments keep their defaults."""

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.model = model

    def forward(self, inputs: Any) -> Any:
        return self.model(inputs)


class _OneInputLogits(_OneInput):
    def forward(self, inputs: Any) -> Any:
        return as_logits(self.model(inputs))


class _PathTracer(fx.Tracer):
    """Traces only the modules that contain the layer; all others stay whole, whatever happens inside them."""

    def __init__(self, root: nn.Module, layer: str) -> None:
        super().__init__()
        parts = layer.split(".")
        self.open = {root, *(root.get_submodule(".".join(parts[:i])) for i in range(1, len(parts)))}
        self.target = root.get_submodule(layer)

    def is_leaf_module(self, m: nn.Module, module_qualified_name: str) -> bool:  # noqa: ARG002
        if m is self.target:
            return True
        return m not in self.open and not isinstance(m, nn.Sequential)


class _Traced(NamedTuple):
    graph_module: fx.GraphModule
    marked: fx.Node
    arguments: Callable[[Nested], list[Any]]


def _trace_symbolically(model: nn.Module, layer: str, _inputs: Nested) -> _Traced:
    root = _OneInput(model)
    root.training = model.training
    tracer = _PathTracer(root, f"model.{layer}")
    graph = tracer.trace(root)
    graph_module = fx.GraphModule(root, graph)
    found = [
        node
        for node in graph.nodes
        if node.op == "call_module" and graph_module.get_submodule(str(node.target)) is tracer.target
    ]
    return _Traced(graph_module, _only(found), lambda inputs: [inputs])


@torch.library.custom_op("mfh::mark", mutates_args=())
def _mark(activation: Tensor) -> Tensor:
    return activation.clone()


@_mark.register_fake
def _(activation: Tensor) -> Tensor:
    return torch.empty_like(activation)


def _trace_by_export(model: nn.Module, layer: str, inputs: Nested) -> _Traced:
    root = _OneInputLogits(model)
    root.training = model.training
    batch = map_tensors(lambda _: {0: torch.export.Dim.AUTO}, inputs)  # type: ignore[arg-type,return-value]

    def mark(_module: nn.Module, _args: Any, output: Any) -> Tensor:
        return torch.ops.mfh.mark(output)  # type: ignore[no-any-return]

    with _hook(find_layer(model, layer), mark), _silence():
        program = torch.export.export(root, (inputs,), dynamic_shapes=(batch,), strict=False)
        graph_module = program.module(check_guards=False)
    found = [node for node in graph_module.graph.nodes if node.target is torch.ops.mfh.mark.default]
    return _Traced(graph_module, _only(found), tree_leaves)


@contextmanager
def _silence() -> Iterator[None]:
    """Tracing reports what it cannot do at length, although failing is an answer here."""
    before = logging.root.manager.disable
    try:
        logging.disable(logging.ERROR)
        nowhere = io.StringIO()
        with warnings.catch_warnings(), redirect_stdout(nowhere), redirect_stderr(nowhere):
            warnings.simplefilter("ignore")
            yield
    finally:
        logging.disable(before)


def _only(found: list[fx.Node]) -> fx.Node:
    if len(found) != 1:
        raise InputError(f"the layer appears {len(found)} times in the traced graph")
    return found[0]


def at_least_single(tensor: Tensor) -> Tensor:
    """Half precision is for networks; sums over samples need more."""
    return tensor.float() if tensor.dtype in (torch.float16, torch.bfloat16) else tensor


def tolerance(reference: Tensor) -> float:
    """How far two computations of `reference` may lie apart."""
    scale = float(reference.abs().max()) if reference.numel() else 0.0
    return relative_tolerance(reference.dtype) * max(scale, 1e-12)


def relative_tolerance(dtype: torch.dtype) -> float:
    """A few hundred roundings of single or double precision, a few of half precision."""
    rounding: float = torch.finfo(dtype).eps
    return 4 * rounding if rounding > 1e-4 else rounding ** (2 / 3)


def _agrees(candidate: Split, inputs: Nested, activation: Tensor, logits: Tensor) -> bool:
    """Whether trunk and tail give what whole forwards give, also for an activation that no input produces."""
    passed = candidate(inputs)
    # Reversed order and a changed scale: both need no randomness and move every entry.
    changed = activation.flip(0) * 0.75 + activation.mean() * 0.5
    whole = replace(candidate.model, candidate.layer, inputs, changed)
    # The tail is run on several versions of a batch at once: a tail that mixes samples cannot be.
    twice = map_tensors(lambda tensor: torch.cat([tensor, tensor]), passed.bypass)
    return (
        _close(passed.activation, activation)
        and _close(passed.logits, logits)
        and _close(candidate.tail(changed, passed.bypass), whole)
        and _close(candidate.tail(torch.cat([changed, activation]), twice), torch.cat([whole, logits]))
    )


def _close(value: Tensor, truth: Tensor) -> bool:
    if value.shape != truth.shape or not truth.numel():
        return False
    return float((value - truth).abs().max()) <= tolerance(truth)
