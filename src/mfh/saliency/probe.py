"""The cross-modal probe: how much of each teacher channel the student's features can predict.

The score of a channel is the cross-fitted R^2 of a ridge regression from the student's features. Samples are split into
folds, and each fold is predicted by a regression fitted on the others. The penalty of each channel is chosen on the
fitting samples alone, in closed form, by generalised cross-validation (Golub, Heath & Wahba 1979). The probe needs no
joint training and no logits: it measures what the student's modality *can* see.
"""

from collections.abc import Iterable, Iterator, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from mfh.data.pairs import Nested, tensors
from mfh.data.spool import Rows, mean_rows
from mfh.errors import InputError
from mfh.networks.frozen import Frozen
from mfh.networks.layers import as_logits, capture_all, find_layer
from mfh.networks.modes import original, original_layer
from mfh.parallel.distributed import share_rows
from mfh.saliency.reader import Estimate, Reader

# Ridge penalties, as multiples of the mean eigenvalue of the features' covariance.
PENALTIES = torch.logspace(-4, 4, 25, dtype=torch.float64)
_MAX_SIDE = 8192
_CHUNK_ELEMENTS = 2**24

#: The student's layer whose output the probe reads, several layers, or None for the default.
StudentLayer = str | Sequence[str] | None


def probe_scores(
    teacher: nn.Module | Frozen,
    student: nn.Module | Frozen,
    pairs: Iterable[Any],
    *,
    layer: str,
    channel_dim: int,
    student_layer: StudentLayer,
    seed: int,
    track: Any = iter,
) -> Estimate:
    """The probe's R^2 of all channels of the teacher's layer, see `cross_fitted_r2`.

    Args:
        teacher: An `nn.Module` in eval mode.
        student: An `nn.Module` in eval mode.
        pairs: The batches.
        layer: The teacher's layer, a name from `named_modules()`.
        channel_dim: The dimension of the layer's output that counts channels.
        student_layer: The student's layer or layers, see `student_features`.
        seed: The random seed of the assignment to folds.
        track: A function that wraps the long loops to show progress.

    Raises:
        InputError: The data or a network cannot be used.
    """
    student = Frozen.of(student)
    for name in layer_names(student_layer):
        if not _is_input(student.network, name):
            find_layer(student.network, name)
    reader = Reader(
        teacher, student, pairs, layer, channel_dim, features=lambda s, x: student_features(s, student_layer, x)
    )
    targets, inputs, errors, width = Rows(), Rows(), Rows(), None
    for read in track(reader):
        assert read.features is not None
        if width not in (None, read.features.shape[1]):
            raise InputError(
                f"the student has {width} features in one batch and {read.features.shape[1]} in another; name a "
                "student_layer whose output has one size"
            )
        width = read.features.shape[1]
        targets.append(reader.to_channels(read.activation))
        inputs.append(read.features.to(read.activation.device))
        errors.append((read.teacher_logits - read.student_logits).square().mean(1))
    z, x, error = (share_rows(rows.finish()) for rows in (targets, inputs, errors))
    scores, standard_error = cross_fitted_r2(x, z, seed=seed, track=track)
    return Estimate(
        scores=scores,
        standard_error=standard_error,
        baseline=float(error.double().mean()),
        means=reader.positions(mean_rows(z)),
        permutations=None,
        samples=len(z),
    )


def student_features(student: nn.Module, student_layer: StudentLayer, inputs: Nested) -> tuple[Tensor, Tensor]:
    """Run the student once and read the features that the probe regresses on.

    Args:
        student: A network that returns logits.
        student_layer: The layer whose flattened output is returned, or several, whose outputs are concatenated.
            "input" means the student's input, unless a layer has that name. None means the input of `default_layer`.
        inputs: The student's one argument.

    Returns:
        The logits (N, K), and the features flattened to (N, F).

    Raises:
        InputError: There is no such layer, or it does not run exactly once on a tensor.
    """
    if student_layer is not None:
        student, names = original(student), layer_names(student_layer)
        own = [name for name in names if not _is_input(student, name)]
        activations, logits = capture_all(student, own, inputs)
        outputs = dict(zip(own, activations, strict=True))
        parts = [[outputs[name]] if name in outputs else tensors(inputs) for name in names]
        return logits, torch.cat([part.flatten(1).to(logits.device) for found in parts for part in found], dim=1)
    name, seen = default_layer(student), list[Any]()

    def read(_module: nn.Module, args: tuple[Any, ...]) -> None:
        seen.extend(a.clone() if isinstance(a, Tensor) else a for a in args[:1])

    handle = student.get_submodule(name).register_forward_pre_hook(read)
    try:
        logits = as_logits(student(inputs))
    finally:
        handle.remove()
    if len(seen) != 1 or not isinstance(seen[0], Tensor) or len(seen[0]) != len(logits):
        raise InputError(
            f"the student's layer {name!r} does not run once on one tensor with samples along dim 0, so the probe "
            "cannot read its input; name a student_layer whose output it can read"
        )
    return logits, seen[0].flatten(1)


def layer_names(student_layer: StudentLayer) -> list[str]:
    """The names of the student's layers in the uncompiled network; an empty list for the default."""
    names = [student_layer] if isinstance(student_layer, str) else list(student_layer or ())
    return [original_layer(name) for name in names]


def default_layer(student: nn.Module) -> str:
    """The name of the student's last leaf module with parameters, usually its classifier. The probe reads its input.

    Raises:
        InputError: The student has no parameters.
    """
    leaves: list[str] = [
        name
        for name, module in student.named_modules()
        if not [*module.children()] and [*module.parameters(recurse=False)]
    ]
    if not leaves:
        raise InputError(f"the student ({type(student).__name__}) has no layer with parameters; name student_layer")
    return leaves[-1]


def _is_input(student: nn.Module, name: str) -> bool:
    return name == "input" and "input" not in dict(student.named_modules())


def cross_fitted_r2(
    features: Tensor, targets: Tensor, *, folds: int = 5, seed: int = 0, track: Any = iter
) -> tuple[Tensor, Tensor]:
    """The cross-fitted R^2 of a ridge regression from the features to every channel.

    R^2 = 1 - sum RSS / sum TSS, where both sums run over folds and over a channel's positions. TSS is taken around the
    mean of the fitting samples, so a channel that cannot be predicted scores zero or slightly less. A constant channel
    scores zero.

    Args:
        features: (N, F), the student's features.
        targets: (N, C, P): samples, channels, positions.
        folds: The number of folds; samples are assigned to them at random.
        seed: The random seed of the assignment.
        track: A function that wraps the loop over folds to show progress.

    Returns:
        R^2, (C,) float64, and its standard error over folds, (C,).

    Raises:
        InputError: There are fewer than two samples per fold, or both samples and features are more than 8192.
    """
    count, width = features.shape
    if count < 2 * folds:
        raise InputError(f"a probe with {folds} folds needs at least {2 * folds} samples; there are {count}: give more")
    if min(count, width) > _MAX_SIDE:
        raise InputError(
            f"the probe would have to invert a matrix of {min(count, width)} rows ({count} samples, {width} student "
            f"features); name a student_layer with at most {_MAX_SIDE} features"
        )
    order = torch.randperm(count, generator=torch.Generator().manual_seed(seed))
    rss, tss = [], []
    held_out_folds = order.tensor_split(folds)
    for fold_index, held_out in enumerate(track(held_out_folds)):
        fitting = torch.cat([*held_out_folds[:fold_index], *held_out_folds[fold_index + 1 :]])
        fold = list(_fold_sums(features, targets, fitting, held_out))
        rss.append(torch.cat([r for r, _ in fold]))
        tss.append(torch.cat([t for _, t in fold]))
    residual, total = torch.stack(rss), torch.stack(tss)
    return _ratio(residual.sum(0), total.sum(0)), _ratio(residual, total).std(0) / folds**0.5


def _ratio(residual: Tensor, total: Tensor) -> Tensor:
    return torch.where(total > 0, 1 - residual / total.clamp_min(torch.finfo(total.dtype).tiny), 0.0)


def _fold_sums(features: Tensor, targets: Tensor, fitting: Tensor, held_out: Tensor) -> Iterator[tuple[Tensor, Tensor]]:
    """RSS and TSS of the held-out samples by channel, a chunk of channels at a time."""
    basis = _Basis(features[fitting])
    new_u = basis.coordinates(features[held_out])
    count = len(fitting)
    step = max(1, _CHUNK_ELEMENTS // (count * targets.shape[2]))
    for start in range(0, targets.shape[1], step):
        chosen = targets[:, start : start + step]
        part, new_part = (chosen[rows].to(new_u.device).double() for rows in (fitting, held_out))
        centre = part.mean(0)
        part, new_part = part - centre, new_part - centre
        # In a channel that is constant up to rounding there is nothing to predict.
        still = part.abs().amax((0, 2)) <= 1e-6 * centre.abs().amax(1)
        part[:, still] = 0.0
        coefficients = basis.shrunk(part)
        fitted = (new_u @ coefficients.flatten(1)).reshape(new_part.shape)
        yield (new_part - fitted).square().sum((0, 2)).cpu(), new_part.square().sum((0, 2)).cpu()


def ridge_predictions(features: Tensor, targets: Tensor, new_features: Tensor, *, decide: int | None = None) -> Tensor:
    """Fit ridge regressions on some samples and predict others, in closed form.

    Args:
        features: (N, F), the features of the fitting samples.
        targets: (N, C, P), C quantities to predict, of P numbers each.
        new_features: (M, F), the features of the other samples.
        decide: The index of a quantity whose best penalty, by generalised cross-validation, is used for all C. None
            gives each quantity its own.

    Returns:
        (M, C, P) in float64, the predictions.

    Example:
        >>> x = torch.arange(8.0)[:, None]
        >>> ridge_predictions(x, 2 * x[:, :, None], torch.tensor([[10.0]])).round(decimals=2)
        tensor([[[20.]]], dtype=torch.float64)
    """
    basis, wanted = _Basis(features), targets.double()
    middle = wanted.mean(0)
    coefficients = basis.shrunk(wanted - middle, decide)
    new_u = basis.coordinates(new_features)
    return (new_u @ coefficients.flatten(1)).reshape(len(new_features), *targets.shape[1:]) + middle


class _Basis:
    """The features of the fitting samples, decomposed as X = U diag(e)^(1/2) V'; every ridge fit is diagonal in U.

    A penalty l multiplies component j by e_j / (e_j + l).

    Args:
        features: (N, F).
    """

    def __init__(self, features: Tensor) -> None:
        x = features.double()
        self.middle = x.mean(0)
        x = x - self.middle
        count, width = x.shape
        if width <= count:  # eigenvectors of X'X
            eigenvalues, v = torch.linalg.eigh(x.T @ x)
        else:  # of XX'
            eigenvalues, v = torch.linalg.eigh(x @ x.T)
        keep = eigenvalues > eigenvalues[-1].clamp_min(0) * 1e-10
        eigenvalues, v = eigenvalues[keep], v[:, keep]
        if width <= count:
            self.u, self._to_u = x @ v / eigenvalues.sqrt(), v / eigenvalues.sqrt()
        else:
            self.u, self._to_u = v, x.T @ v / eigenvalues
        scale = eigenvalues.mean() if len(eigenvalues) else torch.ones((), dtype=torch.float64, device=x.device)
        penalties = PENALTIES.to(x.device)[:, None] * scale
        self._left = penalties / (
            eigenvalues + penalties
        )  # (penalties, components): the fraction of each that a fit leaves
        # GCV divides by the degrees of freedom left. With as many features as samples they are close to zero.
        self._freedom_left = count - 1 - len(eigenvalues) + self._left.sum(1)

    def coordinates(self, features: Tensor) -> Tensor:
        """(M, components): other samples in the basis U, from their features."""
        coordinates: Tensor = (features.double() - self.middle) @ self._to_u
        return coordinates

    def shrunk(self, targets: Tensor, decide: int | None = None) -> Tensor:
        """The coefficients of ridge fits, each channel with its best penalty by GCV.

        Args:
            targets: (N, C, P), centred over samples.
            decide: A channel whose best penalty is used for all channels; None gives each channel its own.

        Returns:
            (components, C, P).
        """
        coefficients = (self.u.T @ targets.flatten(1)).reshape(-1, *targets.shape[1:])
        power = coefficients.square().sum(2)  # (components, C)
        outside = (targets.square().sum((0, 2)) - power.sum(0)).clamp_min(0)
        gcv = (outside + self._left.square() @ power) / self._freedom_left.square()[:, None]
        chosen = gcv.argmin(0)
        if decide is not None:
            chosen = chosen[decide].expand_as(chosen)
        shrunk: Tensor = (1 - self._left[chosen].T)[:, :, None] * coefficients
        return shrunk
