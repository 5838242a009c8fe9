"""The cross-modal probe: how much of each teacher channel the student's features can predict.

The score of a channel is the cross-fitted R^2 of a ridge regression from the student's features. Samples are split into
folds, and each fold is predicted by a regression fitted on the others. The penalty of each channel is chosen on the
fitting samples alone, in closed form, by generalised cross-validation (Golub, Heath & Wahba 1979). The probe needs no
joint training and no logits: it measures what the student's modality *can* see.
"""

from collections.abc import Iterable, Iterator, Sequence, Sized
from typing import Any

import torch
from torch import Tensor, nn

from mfh.data.pairs import Nested, as_batch, num_samples, tensors, to_device
from mfh.data.spool import Rows, mean_rows
from mfh.errors import InputError
from mfh.networks.frozen import Frozen
from mfh.networks.layers import as_logits, capture_all, capture_given, default_layer, find_layer
from mfh.networks.modes import evaluating, original, original_layer, placed
from mfh.parallel.distributed import share_rows, world_size
from mfh.saliency.reader import Estimate, Reader

# Ridge penalties, as multiples of the mean eigenvalue of the features' covariance.
PENALTIES = torch.logspace(-4, 4, 25, dtype=torch.float64)
_MAX_SIDE = 8192
_CHUNK_ELEMENTS = 2**24
FOLDS = 5
# With this many samples per feature, sums over samples take less memory than the samples.
_SAMPLES_PER_FEATURE = 5

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
        if not is_input(student.network, name):
            find_layer(student.network, name)
    reader = Reader(
        teacher, student, pairs, layer, channel_dim, features=lambda s, x: student_features(s, student_layer, x)
    )
    count, found = _num_samples(pairs), None
    while found is None or found.count != count:
        # A loader may give fewer samples than its data set has; then the folds, drawn by number, are drawn again.
        count, found = (count if found is None else found.count), None
        errors = Rows()
        for read in track(reader):
            assert read.features is not None
            x, z = read.features.to(read.activation.device), reader.to_channels(read.activation)
            if found is None:
                many = count >= max(_SAMPLES_PER_FEATURE * x.shape[1], 2 * FOLDS) and world_size() == 1
                found = _Sums(x, z, _folds(count, FOLDS, seed)) if many else _Samples(seed)
            elif x.shape[1] != found.width:
                raise InputError(
                    f"the student has {found.width} features in one batch and {x.shape[1]} in another; name a "
                    "student_layer whose output has one size"
                )
            found.add(x, z)
            errors.append((read.teacher_logits - read.student_logits).square().mean(1))
        assert found is not None
        if isinstance(found, _Samples):
            break
    scores, standard_error = found.scores(track)
    error = share_rows(errors.finish())
    return Estimate(
        scores=scores,
        standard_error=standard_error,
        baseline=float(error.double().mean()),
        means=reader.positions(found.means()),
        permutations=None,
        samples=len(error),
    )


def _num_samples(pairs: Iterable[Any]) -> int:
    """How many samples the batches have, as far as that is known without running a network; 0 if it is not."""
    if isinstance(pairs, Sequence):
        return sum(num_samples(as_batch(item, labelled=False).teacher_input) for item in pairs)
    dataset = getattr(getattr(pairs, "loader", pairs), "dataset", None)
    return len(dataset) if isinstance(dataset, Sized) else 0


class _Samples:
    """Features and channels of all samples, for students with about as many features as there are samples."""

    def __init__(self, seed: int) -> None:
        self._seed = seed
        self._features, self._channels, self.count, self.width = Rows(), Rows(), 0, 0

    def add(self, features: Tensor, channels: Tensor) -> None:
        """Keep a batch: features (n, F), and channels (n, C, P)."""
        self._features.append(features)
        self._channels.append(channels)
        self.count, self.width = self.count + len(features), features.shape[1]

    def scores(self, track: Any) -> tuple[Tensor, Tensor]:
        """R^2 and its standard error, see `cross_fitted_r2`."""
        x, self._all = share_rows(self._features.finish()), share_rows(self._channels.finish())
        return cross_fitted_r2(x, self._all, seed=self._seed, track=track)

    def means(self) -> Tensor:
        """(C, P), the mean of all samples."""
        return mean_rows(self._all)


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
        own = [name for name in names if not is_input(student, name)]
        activations, logits = capture_all(student, own, inputs)
        outputs = dict(zip(own, activations, strict=True))
        parts = [[outputs[name]] if name in outputs else tensors(inputs) for name in names]
        return logits, torch.cat([part.flatten(1).to(logits.device) for found in parts for part in found], dim=1)
    name = default_layer(student)
    seen, returned = capture_given(student, name, inputs)
    logits = as_logits(returned)
    if len(seen) != 1 or not isinstance(seen[0], Tensor) or len(seen[0]) != len(logits):
        raise InputError(
            f"the student's layer {name!r} does not run once on one tensor with samples along dim 0, so the probe "
            "cannot read its input; name a student_layer whose output it can read"
        )
    return logits, seen[0].flatten(1)


def read_features(
    network: nn.Module, layer: StudentLayer, inputs: Iterable[Nested], device: torch.device | str | None
) -> Tensor:
    """Features of a network on many batches of its inputs, (N, F) on the CPU; see `student_features`."""
    with placed(device, network), evaluating(network):
        return torch.cat([student_features(network, layer, to_device(part, device))[1].cpu() for part in inputs])


def layer_names(student_layer: StudentLayer) -> list[str]:
    """The names of the student's layers in the uncompiled network; an empty list for the default."""
    names = [student_layer] if isinstance(student_layer, str) else list(student_layer or ())
    return [original_layer(name) for name in names]


def is_input(student: nn.Module, name: str) -> bool:
    """Whether a layer's name means the network's input: "input", unless a layer has that name."""
    return name == "input" and "input" not in dict(student.named_modules())


def cross_fitted_r2(
    features: Tensor, targets: Tensor, *, folds: int = FOLDS, seed: int = 0, track: Any = iter
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
    held_out_folds = _folds(count, folds, seed)
    if min(count, width) > _MAX_SIDE:
        raise InputError(
            f"the probe would have to invert a matrix of {min(count, width)} rows ({count} samples, {width} student "
            f"features); name a student_layer with at most {_MAX_SIDE} features"
        )
    rss, tss = [], []
    for fold_index, held_out in enumerate(track(held_out_folds)):
        fitting = torch.cat([*held_out_folds[:fold_index], *held_out_folds[fold_index + 1 :]])
        fold = list(_fold_sums(features, targets, fitting, held_out))
        rss.append(torch.cat([r for r, _ in fold]))
        tss.append(torch.cat([t for _, t in fold]))
    return _over_folds(torch.stack(rss), torch.stack(tss))


def _folds(count: int, folds: int, seed: int) -> tuple[Tensor, ...]:
    """The indices of the samples in each fold."""
    if count < 2 * folds:
        raise InputError(f"a probe with {folds} folds needs at least {2 * folds} samples; there are {count}: give more")
    return torch.randperm(count, generator=torch.Generator().manual_seed(seed)).tensor_split(folds)


def _over_folds(residual: Tensor, total: Tensor) -> tuple[Tensor, Tensor]:
    """R^2 of each channel and its standard error, from RSS and TSS, (folds, C)."""
    return _ratio(residual.sum(0), total.sum(0)), _ratio(residual, total).std(0) / len(residual) ** 0.5


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
        part[:, _is_still(part.abs().amax((0, 2)), centre)] = 0.0
        coefficients = basis.shrunk(part)
        fitted = (new_u @ coefficients.flatten(1)).reshape(new_part.shape)
        yield (new_part - fitted).square().sum((0, 2)).cpu(), new_part.square().sum((0, 2)).cpu()


def _is_still(spread: Tensor, centre: Tensor) -> Tensor:
    """(C,) whether a channel is constant up to rounding, so that there is nothing to predict.

    Args:
        spread: (C,), the greatest distance of a sample from the centre.
        centre: (C, P), the mean of the samples.
    """
    return spread <= 1e-6 * centre.abs().amax(1)


class _Sums:
    """Sums over the samples of each fold: all that the probe needs where there are many more samples than features.

    Sums are in float64, of values less those of one sample, so that large means do not swallow small differences.

    Args:
        features: (n, F), some features, for instance the first batch.
        channels: (n, C, P), the channels that belong to them.
        held_out_folds: The indices of the samples in each fold.
    """

    def __init__(self, features: Tensor, channels: Tensor, held_out_folds: Sequence[Tensor]) -> None:
        self.count, self.width, self._shape = 0, features.shape[1], channels.shape[1:]
        self._fold = torch.empty(sum(map(len, held_out_folds)), dtype=torch.long)
        for number, held_out in enumerate(held_out_folds):
            self._fold[held_out] = number
        self._sizes = [len(held_out) for held_out in held_out_folds]
        # One row of sums (1, x, z) for each fold, the products of x with all of (x, z), and the squares of z.
        self._start = torch.cat([features[0], channels[0].flatten()]).double()
        folds, wide = len(held_out_folds), len(self._start)
        self._sum = self._start.new_zeros(folds, wide)
        self._product = self._start.new_zeros(folds, self.width, wide)
        self._square = self._start.new_zeros(folds, wide - self.width)
        self._least, self._most = (torch.full_like(self._square, sign * torch.inf) for sign in (1, -1))

    def add(self, features: Tensor, channels: Tensor) -> None:
        """Add a batch, in the order of the samples: features (n, F), and channels (n, C, P)."""
        fold = self._fold[self.count : self.count + len(features)].to(features.device)
        self.count += len(features)
        if len(fold) < len(features):
            return  # more samples than were said; all are read again
        values = torch.cat([features, channels.flatten(1)], dim=1).double() - self._start
        for number in range(len(self._sum)):
            chosen = values[fold == number]
            if len(chosen):
                z = chosen[:, self.width :]
                self._sum[number] += chosen.sum(0)
                self._product[number].addmm_(chosen[:, : self.width].T, chosen)
                self._square[number] += z.square().sum(0)
                self._least[number] = torch.minimum(self._least[number], z.amin(0))
                self._most[number] = torch.maximum(self._most[number], z.amax(0))

    def means(self) -> Tensor:
        """(C, P), the mean of all samples."""
        mean = self._start + self._sum.sum(0) / self.count
        return mean[self.width :].reshape(self._shape).cpu()

    def scores(self, track: Any) -> tuple[Tensor, Tensor]:
        """R^2 and its standard error, see `cross_fitted_r2`."""
        sums = [self._of_fold(number) for number in track(range(len(self._sizes)))]
        return _over_folds(torch.stack([r for r, _ in sums]), torch.stack([t for _, t in sums]))

    def _of_fold(self, held_out: int) -> tuple[Tensor, Tensor]:
        """RSS and TSS of the samples of one fold, by channel."""
        others = [number for number in range(len(self._sizes)) if number != held_out]
        count = sum(self._sizes[number] for number in others)
        total, width = self._sum[others].sum(0), self.width
        centre = total / count
        product, square = self._centred(others, centre)
        low, high = self._least[others].amin(0), self._most[others].amax(0)
        spread = torch.maximum(high - centre[width:], centre[width:] - low).reshape(self._shape).amax(1)
        still = _is_still(spread, (self._start + centre)[width:].reshape(self._shape))
        eigenvalues, v = _spectrum(product[:, :width])
        to_u = v / eigenvalues.sqrt()
        coefficients = (to_u.T @ product[:, width:]).reshape(-1, *self._shape)
        coefficients[:, still] = 0.0
        power = square.reshape(self._shape).sum(1).masked_fill(still, 0.0)
        shrunk = to_u @ _Shrinkage(eigenvalues, count).of(coefficients, power).flatten(1)
        product, square = self._centred([held_out], centre)
        residual = square - 2 * (shrunk * product[:, width:]).sum(0) + (shrunk * (product[:, :width] @ shrunk)).sum(0)
        return tuple(part.reshape(self._shape).sum(1).clamp_min(0).cpu() for part in (residual, square))  # type: ignore[return-value]

    def _centred(self, folds: list[int], centre: Tensor) -> tuple[Tensor, Tensor]:
        """Products (F, F + CP) and squares (CP,) of some folds, around a centre."""
        count, total = sum(self._sizes[number] for number in folds), self._sum[folds].sum(0)
        away = total - count * centre
        x, z = slice(None, self.width), slice(self.width, None)
        product = self._product[folds].sum(0) - torch.outer(total[x], centre) - torch.outer(centre[x], away)
        square = self._square[folds].sum(0) - centre[z] * (total[z] + away[z])
        return product, square.clamp_min(0)


def _spectrum(product: Tensor) -> tuple[Tensor, Tensor]:
    """Eigenvalues of X'X or XX' that are not zero up to rounding, and their eigenvectors as columns."""
    eigenvalues, v = torch.linalg.eigh(product)
    keep = eigenvalues > eigenvalues[-1].clamp_min(0) * 1e-10
    return eigenvalues[keep], v[:, keep]


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
        eigenvalues, v = _spectrum(x.T @ x if width <= count else x @ x.T)
        if width <= count:
            self.u, self._to_u = x @ v / eigenvalues.sqrt(), v / eigenvalues.sqrt()
        else:
            self.u, self._to_u = v, x.T @ v / eigenvalues
        self._shrinkage = _Shrinkage(eigenvalues, count)

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
        return self._shrinkage.of(coefficients, targets.square().sum((0, 2)), decide)


class _Shrinkage:
    """What penalties do to the components of a ridge fit, and which one generalised cross-validation chooses.

    Args:
        eigenvalues: (components,), those of X'X that are not zero.
        count: The number of fitting samples.
    """

    def __init__(self, eigenvalues: Tensor, count: int) -> None:
        scale = eigenvalues.mean() if len(eigenvalues) else eigenvalues.new_ones(())
        penalties = PENALTIES.to(eigenvalues.device)[:, None] * scale
        # (penalties, components): the fraction of each that a fit leaves
        self._left = penalties / (eigenvalues + penalties)
        # GCV divides by the degrees of freedom left. With as many features as samples they are close to zero.
        self._freedom_left = count - 1 - len(eigenvalues) + self._left.sum(1)

    def of(self, coefficients: Tensor, squares: Tensor, decide: int | None = None) -> Tensor:
        """Coefficients of ridge fits from those without a penalty, (components, C, P).

        Args:
            coefficients: (components, C, P), the targets in the basis U.
            squares: (C,), the sums of squares of the targets.
            decide: A channel whose best penalty is used for all channels; None gives each channel its own.
        """
        power = coefficients.square().sum(2)  # (components, C)
        outside = (squares - power.sum(0)).clamp_min(0)
        gcv = (outside + self._left.square() @ power) / self._freedom_left.square()[:, None]
        chosen = gcv.argmin(0)
        if decide is not None:
            chosen = chosen[decide].expand_as(chosen)
        shrunk: Tensor = (1 - self._left[chosen].T)[:, :, None] * coefficients
        return shrunk
