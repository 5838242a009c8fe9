"""How networks are run here (eval mode, devices, uncompiled), and the fingerprint of their weights."""

import hashlib
import sys
from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import Tensor, nn

from mfh.errors import FOREIGN, InputError, in_a_line
from mfh.parallel.distributed import is_loss_of_a_process


@contextmanager
def evaluating(*models: nn.Module) -> Iterator[None]:
    """Run the networks in eval mode without gradients; every submodule's mode is restored, also after an exception.

    Meanwhile attention does not use PyTorch's fused path, and compiled networks run uncompiled. The global random
    state is restored as well, because merely iterating over a DataLoader draws from it.

    Raises:
        InputError: A network is on the meta device and has no weights.
    """
    check_weights(*models)
    modes = [(module, module.training) for model in models for module in model.modules()]
    try:
        for model in models:
            model.eval()
        # The caller may be in inference mode, but the tail's matrix is computed from gradients.
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


def is_users(error: BaseException) -> bool:
    """Whether an exception that left a network or a loss is to be told as an error of the user's code.

    A failing compiler and a lost process are told in another way.
    """
    return not (
        isinstance(error, InputError)
        or type(error).__module__.startswith(("torch._dynamo", "torch._inductor"))
        or "find_unused_parameters" in str(error)
        or is_loss_of_a_process(error)
    )


@contextmanager
def reading_samples(role: str, first: int, count: int) -> Iterator[None]:
    """Run a network in the block; what its own code raises is told in one line.

    Args:
        role: "teacher" or "student".
        first: Position of the batch's first sample among all pairs.
        count: Number of samples in the batch.

    Raises:
        InputError: The network raised an exception, which is the cause of this one.
    """
    try:
        yield
    except FOREIGN as error:  # the network is the user's own code
        if not is_users(error):
            raise
        samples = f"sample {first}" if count == 1 else f"samples {first} to {first + count - 1}"
        raise InputError(f"the {role} failed on {samples} of the pairs: {in_a_line(error)}") from error


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
    """Run compiled networks as plain Python: compiled code does not call hooks that are added later."""
    if "torch._dynamo" not in sys.modules:  # nothing is compiled, and importing it takes a second
        yield
        return
    with torch.compiler.set_stance("force_eager"):
        yield


@contextmanager
def placed(device: torch.device | str | None, *models: nn.Module) -> Iterator[None]:
    """Move the networks to `device`, and back afterwards.

    With None the networks stay where they are. A network that is spread over several devices always stays.

    Raises:
        InputError: There is no such device, or a network is on the meta device and has no weights.
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


def find_device(device: torch.device | str | None = None) -> torch.device:
    """The device of that name; without a name a GPU if there is one, otherwise the CPU.

    Raises:
        InputError: There is no such device on this machine.
    """
    try:
        found = torch.device(device or ("cuda" if torch.cuda.is_available() else "cpu"))
        torch.empty(0, device=found)
    except (RuntimeError, AssertionError, NotImplementedError):
        raise InputError(
            f"there is no device {str(device)!r} here; choose 'cpu', or install a PyTorch built for it"
        ) from None
    return found


def device_of(model: nn.Module) -> torch.device:
    """The device of the network's first parameter or buffer; the CPU if it has none."""
    for tensor in (*model.parameters(), *model.buffers()):
        return tensor.device
    return torch.device("cpu")


def devices_of(model: nn.Module) -> set[torch.device]:
    """All devices that hold a part of the network."""
    return {tensor.device for tensor in (*model.parameters(), *model.buffers())}


def check_one_device(model: nn.Module, what: str) -> None:
    """Refuse a network that is spread over several devices.

    Args:
        model: The network.
        what: The network's name in the message, for instance "teacher".

    Raises:
        InputError: The network has parts on several devices.
    """
    devices = devices_of(model)
    if len(devices) > 1:
        names = ", ".join(sorted(map(str, devices)))
        raise InputError(
            f"the {what} is spread over several devices ({names}), but one device was expected; move it to one"
        )


def check_weights(*models: nn.Module) -> None:
    """Refuse networks on the meta device, which have shapes but no values.

    Raises:
        InputError: A network has a part on the meta device.
    """
    for model in models:
        if torch.device("meta") in devices_of(model):
            raise InputError(
                f"{type(model).__name__} has parts on the meta device, which holds no values; load its weights first"
            )


def original(model: nn.Module) -> nn.Module:
    """The network that `torch.compile` was given, or the network itself if it is not compiled."""
    inner = model._modules.get("_orig_mod")
    return model if inner is None else inner


def original_layer(layer: str) -> str:
    """The layer's name in the `original` network: `torch.compile` puts a prefix before it."""
    return layer.removeprefix("_orig_mod.")


def fingerprint(model: nn.Module) -> str:
    """A digest of all weights and buffers (names, types, shapes, values), the same on every device.

    Two networks with the same fingerprint have the same weights. A saliency and a mask carry the fingerprint of their
    teacher, so that they are not used with another network.

    Raises:
        InputError: The network is on the meta device and has no weights.
    """
    check_weights(model)
    digest = hashlib.sha256()
    for name, tensor in original(model).state_dict().items():
        if isinstance(tensor, Tensor):
            digest.update(f"{name}:{tensor.dtype}:{tuple(tensor.shape)};".encode())
            digest.update(tensor.detach().cpu().contiguous().reshape(-1).view(torch.uint8).numpy().data)
    return digest.hexdigest()[:32]
