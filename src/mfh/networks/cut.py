"""Cut a network at a named layer into a *trunk*, run once per sample, and a *tail*, run as often as needed.

The cut is found by tracing and verified against whole forwards. A network that cannot be traced is run whole, with the
layer's output replaced: that is always right, but never fast.
"""

import io
import logging
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager, redirect_stderr, redirect_stdout
from dataclasses import dataclass
from typing import Any, NamedTuple

import torch
from torch import Tensor, fx, nn
from torch.utils._pytree import tree_flatten, tree_leaves

from mfh.data.pairs import Nested, map_tensors, num_samples
from mfh.errors import InputError
from mfh.networks.calling import takes_by_name
from mfh.networks.layers import as_logits, capture, find_layer, hooked, replace
from mfh.networks.precision import tolerance

log = logging.getLogger("mfh")


def split(model: nn.Module, layer: str, inputs: Nested) -> "Split":
    """Cut a network at a layer.

    Call it, and use the result, under `evaluating(model)` and with the network on one and the same device.

    Args:
        model: A network that returns logits.
        layer: A name from `named_modules()`.
        inputs: A batch of real data. The cut is compared with whole forwards on it, at two batch sizes and with the
            layer's output changed.

    Raises:
        InputError: There is no such layer, it does not run exactly once, or its output is not a tensor.
    """
    find_layer(model, layer)
    inputs = _plain(inputs)
    largest = min(num_samples(inputs), 8)
    if largest == 1:
        examples = [inputs, map_tensors(lambda tensor: torch.cat([tensor, tensor]), inputs)]
    else:
        examples = [_first(inputs, largest // 2), _first(inputs, largest)]
    # A wrong layer is the caller's error: raise it here, because below every exception means "try the next tracer".
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


class Split:
    """A network in two pieces, cut at a layer. Made by `split`.

    Attributes:
        model: The network.
        layer: The layer's name.
        traced: Whether the tail runs alone; otherwise it is a whole forward with the layer's output replaced.
        head: The linear layer that the tail begins with, or None. It is known only where the tail runs alone.
    """

    def __init__(self, model: nn.Module, layer: str, cut: "_Cut | None" = None, inputs: Nested = None) -> None:
        self.model, self.layer = model, layer
        self.traced = cut is not None
        self.head: LinearHead | None = None
        self._cut, self._traced_for = cut, input_signature(inputs)

    def __call__(self, inputs: Nested) -> "Passed":
        """Run the whole network once and return its logits together with what lies at the cut."""
        inputs = _plain(inputs)
        # A trace holds only for inputs like those it was verified on; others take the way that is always right.
        if self._cut is not None and input_signature(inputs) == self._traced_for:
            activation, *rest = self._cut.trunk(*self._cut.arguments(inputs))
            bypass = self._cut.keep(rest, len(activation))
            if bypass is not None:
                return Passed(activation, self.tail(activation, bypass), bypass)
        return Passed(*capture(self.model, self.layer, inputs), Whole(inputs))

    def tail(self, activation: Tensor, bypass: Nested) -> Tensor:
        """Run the network from the layer on. The logits are differentiable with respect to `activation`.

        Args:
            activation: The layer's output, possibly changed, in the shape the layer returns.
            bypass: The `bypass` that `__call__` returned for the same samples.

        Returns:
            The logits (N, K).
        """
        if self._cut is None or isinstance(bypass, Whole):
            return replace(self.model, self.layer, bypass.inputs, activation)
        return as_logits(self._cut.tail(activation.clone(), *self._cut.complete(bypass, len(activation))))

    def alone(self) -> tuple[nn.Module, list[Callable[[int], Any]]] | None:
        """The tail as a network, where it needs nothing of a sample but the activation; otherwise None.

        Returns:
            The tail, which shares its weights with the network, and functions of the number of samples for what it
            takes beside the activation.
        """
        if self._cut is None or None in self._cut.slots:
            return None
        return self._cut.tail, [slot for slot in self._cut.slots if slot is not None]


class Passed(NamedTuple):
    """One batch that went through a split network.

    Args:
        activation: The layer's output, in the shape the layer returns.
        logits: (N, K).
        bypass: What the tail needs besides the activation; an argument of `Split.tail`.
    """

    activation: Tensor
    logits: Tensor
    bypass: Nested


class Whole(NamedTuple):
    """The bypass of a network that is run whole, with the layer's output replaced.

    Args:
        inputs: The network's one argument.
    """

    inputs: Nested


@dataclass(frozen=True)
class LinearHead:
    """The linear layer that a tail begins with: the tail is `rest(activation.flatten(1) @ weight.T + bias)`.

    Args:
        weight: (H, inputs), the layer's weight.
        bias: (H,), the layer's bias, or None.
        rest: The function after it: (output of the linear layer, bypass) -> logits.
    """

    weight: Tensor
    bias: Tensor | None
    rest: Callable[[Tensor, Nested], Tensor]


def input_signature(inputs: Nested) -> Any:
    """What batches of one kind have in common: structure, types, shapes of one sample, and all that is no tensor."""
    leaves, structure = tree_flatten(_plain(inputs))
    return structure, [(leaf.dtype, leaf.shape[1:]) if isinstance(leaf, Tensor) else leaf for leaf in leaves]


def _plain(inputs: Nested) -> Nested:
    """The inputs with dicts for all mappings: tracers know no other ones."""
    return map_tensors(lambda tensor: tensor, inputs)


# --- trunk and tail ---------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class _Cut:
    """Trunk and tail as graph modules, and what the tail takes besides the activation.

    Args:
        trunk: The network up to the layer; it returns the activation and all values that bypass the layer.
        tail: The network after the layer; it takes what the trunk returns.
        arguments: A function from the network's input to the trunk's arguments.
        slots: One entry per value that bypasses the layer. None stands for a tensor with samples along dim 0, which is
            kept with the activation; any other value is computed from the batch size by the entry.
    """

    trunk: fx.GraphModule
    tail: fx.GraphModule
    arguments: Callable[[Nested], list[Any]]
    slots: tuple[Callable[[int], Any] | None, ...]

    def keep(self, values: list[Any], size: int) -> tuple[Tensor, ...] | None:
        """The values to keep with a batch; None if a value contradicts its slot, so that the cut does not hold."""
        for value, slot in zip(values, self.slots, strict=True):
            if not (len(value) == size if slot is None else _same(value, slot(size))):
                return None
        return tuple(value for value, slot in zip(values, self.slots, strict=True) if slot is None)

    def complete(self, bypass: tuple[Tensor, ...], size: int) -> list[Any]:
        """All values that bypass the layer, from those that `keep` returned."""
        kept = iter(bypass)
        return [next(kept) if slot is None else slot(size) for slot in self.slots]


def _prepare(traced: "_Traced", examples: list[Nested]) -> tuple[_Cut, list[fx.Node]]:
    trunk, tail, bypass = _cut_graph(traced.graph_module, traced.marked)
    sizes = [num_samples(example) for example in examples]
    runs = [trunk(*traced.arguments(example))[1:] for example in examples]
    slots = tuple(_slot(small, large, sizes) for small, large in zip(*runs, strict=True))
    return _Cut(trunk, tail, traced.arguments, slots), bypass


def _slot(small: Any, large: Any, sizes: list[int]) -> Callable[[int], Any] | None:
    """The slot of a value that bypasses the layer, judged by what it was for two batches of different size."""
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
    """The linear layer that takes the whole activation (flattened or not), if nothing else takes any of it."""
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


# --- tracing ----------------------------------------------------------------------------------------------------------


class _Traced(NamedTuple):
    """A traced network: its graph, the node of the layer, and a function from an input to the graph's arguments."""

    graph_module: fx.GraphModule
    marked: fx.Node
    arguments: Callable[[Nested], list[Any]]


def _trace_symbolically(model: nn.Module, layer: str, inputs: Nested) -> _Traced:
    root = _OneInput(model, inputs)
    root.training = model.training
    tracer = _PathTracer(root, f"model.{layer}")
    graph = tracer.trace(root)
    graph_module = fx.GraphModule(root, graph)
    found = [
        node
        for node in graph.nodes
        if node.op == "call_module" and graph_module.get_submodule(str(node.target)) is tracer.target
    ]
    return _Traced(graph_module, _only(found), lambda batch: [batch])


class _PathTracer(fx.Tracer):
    """Traces only the modules that contain the layer; all others stay whole, and may contain what cannot be traced."""

    def __init__(self, root: nn.Module, layer: str) -> None:
        super().__init__()
        parts = layer.split(".")
        self.open = {root, *(root.get_submodule(".".join(parts[:i])) for i in range(1, len(parts)))}
        self.target = root.get_submodule(layer)

    def is_leaf_module(self, m: nn.Module, module_qualified_name: str) -> bool:  # noqa: ARG002
        if m is self.target:
            return True
        return m not in self.open and not isinstance(m, nn.Sequential)


def _trace_by_export(model: nn.Module, layer: str, inputs: Nested) -> _Traced:
    root = OneInputLogits(model, inputs)
    root.training = model.training
    batch = map_tensors(lambda _: {0: torch.export.Dim.AUTO}, inputs)  # type: ignore[arg-type,return-value]

    def mark(_module: nn.Module, _args: Any, output: Any) -> Tensor:
        return torch.ops.mfh.mark(output)  # type: ignore[no-any-return]

    with hooked(find_layer(model, layer), mark), silenced():
        program = torch.export.export(root, (inputs,), dynamic_shapes=(batch,), strict=False)
        graph_module = program.module(check_guards=False)
    found = [node for node in graph_module.graph.nodes if node.target is torch.ops.mfh.mark.default]
    return _Traced(graph_module, _only(found), tree_leaves)


@torch.library.custom_op("mfh::mark", mutates_args=())
def _mark(activation: Tensor) -> Tensor:
    return activation.clone()


@_mark.register_fake
def _(activation: Tensor) -> Tensor:
    return torch.empty_like(activation)


@contextmanager
def silenced() -> Iterator[None]:
    """Suppress what tracers log and print when they fail: here failing is an answer like any other."""
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


class _OneInput(nn.Module):
    """Calls the network with its input, so that tracing leaves its other arguments at their defaults."""

    def __init__(self, model: nn.Module, inputs: Nested) -> None:
        super().__init__()
        self.model = model
        self.names = list(inputs) if takes_by_name(model, inputs) else None

    def forward(self, inputs: Any) -> Any:
        if self.names is None:
            return self.model(inputs)
        return self.model(**{name: inputs[name] for name in self.names})


class OneInputLogits(_OneInput):
    """The same for an exported network, which must return a tensor."""

    def forward(self, inputs: Any) -> Any:
        """The logits of inputs."""
        return as_logits(super().forward(inputs))


# --- verifying --------------------------------------------------------------------------------------------------------


def _first(inputs: Nested, count: int) -> Nested:
    return map_tensors(lambda tensor: tensor[:count], inputs)


def _agrees(candidate: Split, inputs: Nested, activation: Tensor, logits: Tensor) -> bool:
    """Whether trunk and tail give what whole forwards give, also for an activation that no input produces."""
    passed = candidate(inputs)
    # Reversing the samples and changing the scale moves every entry, without drawing random numbers.
    changed = activation.flip(0) * 0.75 + activation.mean() * 0.5
    whole = replace(candidate.model, candidate.layer, inputs, changed)
    # Scores run the tail on several versions of a batch at once, which a tail that mixes samples does not allow.
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
    return float((value - truth).abs().max().detach()) <= tolerance(truth)
