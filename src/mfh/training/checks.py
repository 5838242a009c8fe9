"""What can be wrong with networks, splits and functions before a training starts, each said in one line."""

import inspect
import math
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.data import DataLoader, IterableDataset

from mfh.data.pairs import PairedBatch, map_tensors, place_of, tensors
from mfh.errors import FOREIGN, InputError, in_a_line, shown
from mfh.networks.modes import check_one_device, check_weights, is_users
from mfh.parallel.distributed import world_size
from mfh.problems.problem import Problem

ROLES = ("teacher", "student")


def check_training(
    networks: Mapping[str, Any],
    splits: Mapping[str, Any],
    problem: Any = None,
    *,
    loss: Any = None,
    logger: Any = None,
) -> None:
    """Refuse what cannot be trained, without reading an item or running a network.

    Args:
        networks: Networks to train, by role.
        splits: Data sets, by the name of the split.
        problem: What logits and targets mean; None is classification.
        loss: Distillation loss, if there is one.
        logger: Logger that follows the training, or several.

    Raises:
        InputError: One of them cannot be used; the message is one line.
    """
    if problem is not None:
        check_problem(problem)
    for role, network in networks.items():
        check_network(network, role)
        check_weights(network)
        check_one_device(network, role)
        parameters = list(network.parameters())
        if not any(parameter.requires_grad for parameter in parameters):
            what = "is frozen (requires_grad=False)" if parameters else "has no parameters"
            raise InputError(
                f"the {role}, {type(network).__name__}, {what}, so there is nothing to train; "
                + (f"unfreeze it: {role}.requires_grad_(True)" if parameters else "give a network with parameters")
            )
    for name, split in splits.items():
        check_split(split, name)
    if loss is not None:
        _check_loss(loss)
    for one in logger if isinstance(logger, (list, tuple)) else [logger]:
        if one is not None and not callable(getattr(one, "log_metrics", None)):
            raise InputError(
                f"logger is of type {type(one).__name__}; an object with log_metrics(metrics, step) was expected, for "
                "instance lightning.pytorch.loggers.CSVLogger('logs')"
            )


def check_role(role: Any) -> Any:
    """Refuse what is no role.

    Raises:
        InputError: It is neither "teacher" nor "student".
    """
    if role not in ROLES:
        raise InputError(f"role is {role!r}; choose 'teacher' or 'student': the input that the network reads")
    return role


def check_network(network: Any, role: str) -> None:
    """Refuse what is no network.

    Raises:
        InputError: It is not an instance of `nn.Module`.
    """
    if isinstance(network, nn.Module):
        return
    name = getattr(network, "__name__", type(network).__name__)
    call = f": call it, {role}={name}()" if callable(network) else ""
    raise InputError(f"the {role} is {name}, not a network; an instance of torch.nn.Module was expected{call}")


def check_split(split: Any, name: str) -> None:
    """Refuse what is no map-style data set, and a split with too few samples.

    Raises:
        InputError: It cannot be read by index, or has fewer samples than there are processes.
    """
    check_map_style(split, name)
    if not num_items(split, name):
        raise InputError(f"the {name} split is empty; give at least one sample")
    if num_items(split, name) < world_size() and name != "unlabelled":  # whose pairs are read with the labelled ones
        raise InputError(f"the {name} split has {len(split)} samples for {world_size()} processes; start fewer")


def check_map_style(split: Any, name: str) -> None:
    """Refuse what cannot be read by index.

    Raises:
        InputError: It is no map-style data set.
    """
    if isinstance(split, DataLoader):
        raise InputError(f"{name} is a DataLoader; a data set was expected: give loader.dataset")
    if isinstance(split, IterableDataset):
        raise InputError(
            f"{name} is a {type(split).__name__}, an IterableDataset; a map-style data set was expected, with len() "
            "and an item for each index"
        )
    if isinstance(split, Mapping) or not (hasattr(split, "__len__") and hasattr(split, "__getitem__")):
        raise InputError(
            f"{name} is a {type(split).__name__}; a map-style data set of (teacher_input, student_input, target) was "
            "expected, with len() and an item for each index"
        )


def num_items(split: Any, name: str) -> int:
    """Number of items of a data set, whose code is the user's.

    Raises:
        InputError: The data set cannot say it.
    """
    try:
        return len(split)
    except FOREIGN as error:
        raise InputError(f"the {name} split has no length: {in_a_line(error)}; give one with len()") from error


def check_problem(problem: Any) -> None:
    """Refuse what does not say what logits and targets mean.

    Raises:
        InputError: It is no `Problem`.
    """
    if not isinstance(problem, Problem):
        raise InputError(_not_a_problem(problem))


def _not_a_problem(problem: Any) -> str:
    if callable(problem) and not isinstance(problem, nn.Module):
        name = getattr(problem, "__name__", type(problem).__name__)
        return f"problem is the function {name}; a Problem was expected: call it, problem=Problem.{name}()"
    if isinstance(problem, nn.Module):
        name = type(problem).__name__
        return (
            f"problem is a {name}; a Problem was expected: give the loss to one, "
            f"problem=Problem.classification(label_loss={name}())"
        )
    return (
        f"problem is {shown(problem)}; choose Problem.classification(), Problem.multi_label(), Problem.dense() or "
        "Problem.regression()"
    )


def _check_loss(loss: Any) -> None:
    wanted = "a function of (student_logits, teacher_logits, target) was expected: give mfh.KDLoss(...) or your own"
    if not callable(loss):
        raise InputError(f"loss is of type {type(loss).__name__}; {wanted}")
    try:
        signature = inspect.signature(loss.forward if isinstance(loss, nn.Module) else loss)
    except (TypeError, ValueError):  # some built-in functions have none
        return
    try:
        signature.bind(None, None, None)
    except TypeError:
        name = getattr(loss, "__name__", type(loss).__name__)
        raise InputError(f"loss is {name}, which takes {signature}; {wanted}") from None


def no_loss(loss: Any) -> str | None:
    """What is wrong with something that cannot be minimised, and what was expected; None if nothing is."""
    wanted = "; a tensor of one number that depends on the network was expected, for instance the mean over samples"
    if not isinstance(loss, Tensor):
        return f"a {type(loss).__name__}{wanted}"
    if loss.numel() != 1:
        return f"a tensor of shape {tuple(loss.shape)}{wanted}"
    return None if loss.requires_grad else f"a tensor without gradient{wanted}"


def check_finite_inputs(
    batch: PairedBatch, fields: Iterable[str], split: str, indices: Sequence[int], dataset: Any = None
) -> None:
    """Refuse inputs with NaN or infinite numbers.

    Args:
        batch: A batch, or a whole split.
        fields: Inputs to look at: "teacher_input", "student_input" or both.
        split: Name of the split.
        indices: The samples' positions in the split.
        dataset: The data set that they are positions in, where the split may be in another order; see `place_of`.

    Raises:
        InputError: A number is not finite; the message names split, sample and input.
    """
    for field in fields:
        fault = not_finite(getattr(batch, field))
        if fault is not None:
            row, value = fault
            raise InputError(
                f"{where(dataset, split, [indices[row]])}: {field} holds {value}; finite numbers were expected: mend "
                "the item or leave it out (`mfh check TASK` lists all such items)"
            )


def check_targets(
    problem: Problem,
    logits: Tensor,
    target: Tensor,
    split: str,
    indices: Sequence[int],
    dataset: Any,
    *,
    training: bool,
) -> None:
    """Refuse targets that do not fit these logits.

    Args:
        problem: What targets mean.
        logits: (N, ...). Only their shape and type are checked.
        target: (N, ...), the targets of the same samples.
        split: Name of the split.
        indices: The samples' positions in the data set.
        dataset: The data set that they are positions in; see `place_of`.
        training: Whether these are training data, where entries may be missing.

    Raises:
        InputError: A target is wrong; the message names split and sample.
    """
    fault = problem.target_fault(logits, target, training=training)
    if fault is not None:
        message, row = fault
        named = f"{place_of(dataset, split, 0)[0]} split" if row is None else where(dataset, split, [indices[row]])
        raise InputError(f"{named}: {message}")


def not_finite(nested: Any) -> tuple[int, float] | None:
    """The first row of a nested input that is not finite, with the number it holds; None if all numbers are finite."""
    for tensor in tensors(nested):
        if not tensor.dtype.is_floating_point or tensor.layout is not torch.strided:
            continue
        # One pass without an intermediate tensor. A sum that is not finite may be an overflow, so that is looked into.
        if math.isfinite(tensor.sum()):
            continue
        wrong = ~torch.isfinite(tensor)
        if wrong.any():
            place = tuple(wrong.nonzero()[0].tolist())
            return place[0] if place else 0, float(tensor[place])
    return None


def unreadable(
    error: BaseException,
    network: nn.Module,
    inputs: Any,
    role: str,
    split: str,
    indices: Sequence[int] = (),
    dataset: Any = None,
) -> BaseException:
    """What to raise where a network fails on a batch.

    Args:
        error: Exception that the network raised.
        network: The network.
        inputs: What it was called with.
        role: "teacher" or "student".
        split: Name of the split.
        indices: The samples' positions in the split, if a sample is to be named.
        dataset: The data set that they are positions in, where the split may be in another order; see `place_of`.

    Returns:
        An InputError of one line that says what to do where that is known. What concerns the user in another way (an
        InputError, a failing compiler, a lost process) is returned as it is.
    """
    if not is_users(error):
        return error
    said = f"the {role} cannot read {role}_input of the {split} split"
    weights = next((p.dtype for p in network.parameters() if p.is_floating_point()), torch.float32)
    given = {tensor.dtype for tensor in tensors(inputs) if tensor.is_floating_point()}
    if torch.float64 in given and weights != torch.float64 and "type" in str(error):
        return InputError(
            f"{said}: {role}_input is float64 and the network's weights are {_short(weights)}; convert the data: "
            ".float() for tensors, .astype('float32') for arrays"
        )
    if isinstance(inputs, Mapping) and _takes_by_name(network, inputs):
        keys = ", ".join(map(repr, inputs))
        return InputError(
            f"{said}: it is called with one mapping ({keys}), and {type(network).__name__} takes these by name; wrap "
            f"it in a module with forward(self, inputs): return self.model(**inputs).logits ({in_a_line(error)})"
        )
    if isinstance(error, torch.OutOfMemoryError):
        return InputError(f"{said}: {in_a_line(error)}; choose a smaller batch_size, with accumulate for equal steps")
    samples = ""
    if indices:
        failing = _failing(error, network, inputs, indices)
        place, _, names = where(dataset, split, failing).partition(" split, ")
        said, samples = f"the {role} cannot read {role}_input of the {place} split", f", {names}"
    return InputError(f"{said} ({_described(inputs)}{samples}): {in_a_line(error)}")


def _failing(error: BaseException, network: nn.Module, inputs: Any, indices: Sequence[int]) -> Sequence[int]:
    """The sample that the network fails on; the whole batch where it fails on all of them, or on none alone."""
    if len(indices) == 1 or "CUDA" in str(error) or world_size() > 1:
        return indices
    network.eval()  # a single sample is too few for batch normalisation
    failing = []
    for row, index in enumerate(indices):
        try:
            with torch.no_grad():
                network(map_tensors(lambda tensor, row=row: tensor[row : row + 1], inputs))  # type: ignore[misc]
        except FOREIGN:  # as before
            failing.append(int(index))
    return failing[:1] if 0 < len(failing) < len(indices) else indices


def where(dataset: Any, split: str, indices: Sequence[int]) -> str:
    """Split and samples for a message, as the user knows them: "train split, samples 3, 4, ...".

    Args:
        dataset: The data set, as it is read; see `place_of`. None has the order of the split.
        split: Name of its split.
        indices: Positions of the samples, at least one. Of a batch from two splits, the first one's samples are named.
    """
    places = [place_of(dataset, split, int(index)) for index in indices]
    named = places[0][0]
    positions = [position for name, position in places if name == named]
    return f"{named} split, sample{'s' * (len(positions) > 1)} {listed(positions)}"


def listed(indices: Sequence[int], limit: int = 3) -> str:
    """The first few indices, for a message."""
    return ", ".join(str(int(index)) for index in indices[:limit]) + (", ..." if len(indices) > limit else "")


def _takes_by_name(network: nn.Module, inputs: Mapping[Any, Any]) -> bool:
    try:
        parameters = inspect.signature(network.forward).parameters
    except (TypeError, ValueError):
        return False
    return bool(inputs) and len(parameters) > 1 and any(key in parameters for key in inputs)


def _described(inputs: Any) -> str:
    if isinstance(inputs, Tensor):
        return f"a {_short(inputs.dtype)} tensor of shape {tuple(inputs.shape)}"
    return f"a {type(inputs).__name__}"


def _short(dtype: torch.dtype) -> str:
    return str(dtype).removeprefix("torch.")
