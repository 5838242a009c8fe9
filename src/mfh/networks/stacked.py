"""Networks of one architecture as one: stacked parameters, and a forward pass of all of them at once."""

import copy
from collections.abc import Callable, Hashable, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.func import functional_call, vmap
from torch.fx import GraphModule, Node
from torch.nn.modules.batchnorm import _NormBase
from torch.nn.modules.dropout import _DropoutNd

from mfh.errors import FOREIGN, in_a_line
from mfh.networks.layers import as_logits

#: Elements that a processor's widest instructions work on at once. What is left at the end of a tensor is rounded
#: differently, so no network may lie there.
_LANES = 16

_aten: Any = torch.ops.aten


class NotStackableError(Exception):
    """Networks cannot run as one; the message is the reason and names the layer."""


def architecture(network: nn.Module) -> Hashable:
    """What networks must share to be stacked: layers, and names, shapes and types of parameters and buffers.

    Raises:
        NotStackableError: The network has a layer that cannot be stacked.
    """
    for name, module in network.named_modules():
        reason = _reason(module)
        if reason is not None:
            layer = f"layer {name!r} ({type(module).__name__})" if name else type(module).__name__
            raise NotStackableError(f"{layer} {reason}")
    tensors = [
        (name, tuple(tensor.shape), tensor.dtype, tensor.requires_grad)
        for named in (network.named_parameters(), network.named_buffers())
        for name, tensor in named
    ]
    kinds = [(name, type(module)) for name, module in network.named_modules()]
    state = tuple(network.state_dict())
    others = set(state) - {name for name, *_ in tensors}
    if others:
        raise NotStackableError(f"{min(others)!r} of its state_dict is shared with another layer, or is no tensor")
    return repr(network), tuple(kinds), tuple(tensors), state


def _reason(module: nn.Module) -> str | None:
    """Why a module cannot be stacked, as far as its type says."""
    if isinstance(module, _NormBase) and module.track_running_stats:
        return "keeps statistics of its batches"
    if isinstance(module, nn.modules.batchnorm._BatchNorm):
        return "normalises over the batch"
    if isinstance(module, _DropoutNd) and module.p:
        return "is random"
    if isinstance(module, nn.RReLU | nn.FractionalMaxPool2d | nn.FractionalMaxPool3d):
        return "is random"
    if isinstance(module, nn.RNNBase):
        return "is recurrent"
    if isinstance(module, nn.Transformer | nn.TransformerEncoderLayer | nn.TransformerDecoderLayer):
        return "has attention"
    if isinstance(module, nn.MultiheadAttention):
        return "is attention"
    if module._forward_hooks or module._forward_pre_hooks or module._backward_hooks:
        return "has hooks"
    return None


def copies_needed(num_networks: int, network: nn.Module) -> int:
    """How many copies must follow so many networks, so that none lies at the end of a tensor; see `_LANES`."""
    smallest = min((parameter.numel() for parameter in network.parameters()), default=1)
    return min(-num_networks % _LANES, -(-(_LANES - 1) // max(1, smallest)))


class Stacked:
    """R networks of one architecture, of which a forward pass is that of each.

    Args:
        networks: Networks of one `architecture`. They are copied.
        device: Device to run on.
        num_copies: How many copies of the last network to add. With as many as `copies_needed` says, what a network
            computes does not depend on the others, to the last bit where the processor's matrix routines do not choose
            by their number.

    Attributes:
        weights: Name of a parameter -> that of all networks, (R + copies, ...).
        fixed: Name of a buffer -> that of all networks.
        training: Whether the networks are in training mode.
    """

    def __init__(self, networks: Sequence[nn.Module], device: torch.device, num_copies: int = 0) -> None:
        first = networks[0]
        everyone = [*networks, *[networks[-1]] * num_copies]
        parameters = [dict(network.named_parameters()) for network in everyone]
        buffers = [dict(network.named_buffers()) for network in everyone]
        self.weights = {
            name: nn.Parameter(
                torch.stack([each[name].detach().to(device) for each in parameters]), parameter.requires_grad
            )
            for name, parameter in first.named_parameters()
        }
        self.fixed = {name: torch.stack([each[name].to(device) for each in buffers]) for name in buffers[0]}
        self.training = True
        self._template = copy.deepcopy(first).to("meta")
        self._names = list(first.state_dict())
        self._traced: dict[Hashable, Callable[..., Tensor]] = {}

    def __call__(self, inputs: Tensor) -> Tensor:
        """Logits (R + copies, N, K) of inputs (R + copies, N, ...).

        Raises:
            NotStackableError: The network's own code cannot be run for several networks at once.
        """
        key = self.training, inputs.shape, inputs.dtype, torch.is_grad_enabled()
        if key not in self._traced:
            self._traced[key] = self._trace(inputs).forward  # without the time of calling a module
        return self._traced[key](inputs, *self.weights.values(), *self.fixed.values())

    def _trace(self, inputs: Tensor) -> GraphModule:
        from torch.fx.experimental.proxy_tensor import make_fx

        template = self._template
        template.train(self.training)
        entered: list[tuple[str, nn.Module]] = [("", template)]
        hooks = [
            module.register_forward_pre_hook(lambda one, _, name=name: entered.append((name, one)))
            for name, module in template.named_modules()
        ]

        names = [*self.weights, *self.fixed]

        def forward(rows: Tensor, *tensors: Tensor) -> Tensor:  # of single tensors, because dictionaries cost time
            return as_logits(functional_call(template, dict(zip(names, tensors, strict=True)), (rows,)))

        before = {name: buffer.clone() for name, buffer in self.fixed.items()}
        try:
            traced = make_fx(vmap(forward))(inputs, *self.weights.values(), *self.fixed.values())
        except FOREIGN as error:
            name, module = entered[-1]
            layer = f"layer {name!r} ({type(module).__name__})" if name else type(module).__name__
            raise NotStackableError(f"{layer} cannot run for several networks at once: {in_a_line(error)}") from error
        finally:
            for hook in hooks:
                hook.remove()
        for name, buffer in self.fixed.items():
            if not torch.equal(buffer, before[name]):
                raise NotStackableError(f"buffer {name!r} changes in a forward pass")
        return _shortened(traced)

    def state(self, index: int) -> dict[str, Tensor]:
        """The state of one network, as it is now."""
        tensors = {**self.weights, **self.fixed}
        return {name: tensors[name][index] for name in self._names}

    def write(self, index: int, network: nn.Module) -> None:
        """Give a network the weights that it has here."""
        with torch.no_grad():
            for name, parameter in network.named_parameters():
                parameter.copy_(self.weights[name][index])


def _shortened(traced: GraphModule) -> GraphModule:
    """The same computation in fewer operations, which is what small networks spend their time on.

    `vmap` makes a linear layer of a product, a sum, and several views that change nothing.
    """
    graph = traced.graph
    for node in graph.nodes:
        if _changes_nothing(node):
            node.replace_all_uses_with(node.args[0])
    graph.eliminate_dead_code()
    for node in list(graph.nodes):
        if node.target is _aten.add.Tensor and len(node.args) == 2 and not node.kwargs:
            for bias, product in (node.args, node.args[::-1]):
                if isinstance(product, Node) and product.target is _aten.bmm.default and len(product.users) == 1:
                    with graph.inserting_before(node):
                        node.replace_all_uses_with(graph.call_function(_aten.baddbmm.default, (bias, *product.args)))
                    break
    graph.eliminate_dead_code()
    traced.recompile()
    return traced


def _changes_nothing(node: Node) -> bool:
    """Whether the result of an operation is its first argument."""
    if node.target is _aten.mul.Scalar:
        return bool(node.args[1] == 1)
    if node.target not in (_aten.view.default, _aten._unsafe_view.default, _aten.expand.default):
        return False
    before: Any = node.args[0]
    shapes = [getattr(one.meta.get("val"), "shape", None) for one in (before, node)]
    return shapes[0] is not None and bool(shapes[0] == shapes[1])
