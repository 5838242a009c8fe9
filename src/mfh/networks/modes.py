"""Networks as they are found and as they must be: eval mode, devices, compiled networks, fingerprints."""

import hashlib
import sys
from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import Tensor, nn

from mfh.errors import InputError


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
