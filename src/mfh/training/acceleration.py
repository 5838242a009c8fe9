"""Networks as a device likes them while they train, and as they were afterwards."""

from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import nn
from torch.nn.modules.batchnorm import _BatchNorm

from mfh.errors import InputError
from mfh.parallel.distributed import world_size
from mfh.training.recipe import Recipe

_CHANNELS_LAST = {4: torch.channels_last, 5: torch.channels_last_3d}


@contextmanager
def prepared(networks: nn.ModuleDict, recipe: Recipe, device: torch.device) -> Iterator[None]:
    """Apply `channels_last` and `compile`, and synchronise batch normalisation between GPUs.

    Args:
        networks: Networks to train; they keep their parameters, and get their modules back.
        recipe: Recipe that says what is wanted.
        device: Device that the networks are trained on.

    Raises:
        InputError: The precision does not exist on this device, or the networks cannot be compiled.
    """
    if recipe.precision == "16-mixed" and device.type == "cpu":
        raise InputError(f"precision is {recipe.precision!r}, which needs a GPU; on a CPU choose 32-true or bf16-mixed")
    exchanged = _synchronise(networks) if device.type == "cuda" and world_size() > 1 else []
    if recipe.channels_last:
        _lay_out(networks, last=True)
    try:
        if recipe.compile:
            for network in networks.values():
                network.compile()
        yield
    except Exception as error:
        if recipe.compile and type(error).__module__.startswith(("torch._dynamo", "torch._inductor")):
            reason = str(error).strip().split("\n")[0]
            raise InputError(f"the networks cannot be compiled here ({reason}); leave compile out") from error
        raise
    finally:
        for network in networks.values():
            network._compiled_call_impl = None
        if recipe.channels_last:
            _lay_out(networks, last=False)
        for parent, name, module in exchanged:
            module._buffers.update(parent.get_submodule(name)._buffers)
            parent._modules[name] = module


def _synchronise(networks: nn.Module) -> list[tuple[nn.Module, str, nn.Module]]:
    """Exchange batch normalisation for one with statistics over all processes; returns what was where."""
    made: dict[nn.Module, nn.Module] = {}
    found: list[tuple[nn.Module, str, nn.Module]] = [
        (parent, name, module)
        for parent in networks.modules()
        for name, module in parent._modules.items()
        if isinstance(module, _BatchNorm)
    ]
    for parent, name, module in found:
        if module not in made:
            made[module] = nn.SyncBatchNorm.convert_sync_batchnorm(module)  # type: ignore[no-untyped-call]
        parent._modules[name] = made[module]
    return found


def _lay_out(networks: nn.Module, *, last: bool) -> None:
    """Order the weights of convolutions by channel last, from which their outputs follow; or as usual."""
    for parameter in networks.parameters():
        if parameter.ndim in _CHANNELS_LAST:
            layout = _CHANNELS_LAST[parameter.ndim] if last else torch.contiguous_format
            parameter.data = parameter.data.contiguous(memory_format=layout)
