"""Algorithm 1, step 2: how much the distance to the student rises when one channel is permuted over samples.

There are two ways to the same expectation. *Exact* averages over all permutations in closed form; it needs a tail that
is affine in the activation, h = W z + b. *Sampled* draws M permutations of the whole data set and runs the tail again.

The exact mean squared error: permuting channel c replaces its contribution u_i = W_c z_ic to the logits of sample i by
u_j, where sample j is drawn uniformly from the data. With r = h - s, the teacher's logits minus the student's,

    E |r_i + u_j - u_i|^2 - E |r_i|^2 = 2 sum_k [ var(u_k) - cov(r_k, u_k) ],

so the score of channel c is 2/K times that sum, and covariances add over batches and processes. `b` may differ from
sample to sample (paths that bypass the layer); W may not.
"""

import functools
import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch import Tensor, nn

from mfh.data.pairs import map_tensors, to_device
from mfh.data.spool import Rows, mean_rows
from mfh.errors import InputError
from mfh.networks.cut import Whole
from mfh.networks.modes import device_of
from mfh.networks.precision import at_least_single, relative_tolerance
from mfh.parallel.distributed import gather, rank, share_rows, world_size
from mfh.saliency.exact_l1 import compiled_channel_sums, mean_absolute_sums
from mfh.saliency.reader import Estimate, Read, Reader
from mfh.values import NumPermutations

Distance = Literal["mse", "l1"] | Callable[[Tensor, Tensor], Tensor]
Permutations = NumPermutations | Literal["auto", "exact"]

AUTO_PERMUTATIONS = 10
# How many elements are worked on at once: few enough for a processor's cache, or enough to keep a GPU busy.
_CHUNK_ELEMENTS_CPU, _CHUNK_ELEMENTS_GPU = 2**19, 2**26

# Samples x channels x logits from which the compiled L1 sums pay for being loaded, which takes about a second. Torch
# takes 0.1 to 0.4 microseconds for each.
_COMPILED_FROM = 2**23

# The tail's matrix is computed up to this size, outputs times activations; dense prediction has many outputs.
_MATRIX_ELEMENTS = 2**26


def _chunk(tensor: Tensor) -> int:
    return _CHUNK_ELEMENTS_CPU if tensor.device.type == "cpu" else _CHUNK_ELEMENTS_GPU


class NotAffineError(Exception):
    """The tail is not affine in the activation, so there is no closed form."""


def permutation_scores(
    reader: Reader, *, agreement: bool, distance: Distance, permutations: Permutations, seed: int, track: Any = iter
) -> Estimate:
    """The scores of all channels by permutation.

    Args:
        reader: The reader of both networks and the data.
        agreement: Whether to keep only the part that involves the student: 2/K * cov(student logits, contribution).
        distance: The distance between logits; it must be "mse" with `agreement`.
        permutations: "exact", a number, or "auto": exact where the tail is affine, otherwise 10 permutations.
        seed: The random seed of the drawn permutations.
        track: A function that wraps the long loops to show progress.

    Raises:
        InputError: The data or a network cannot be used, or `permutations` is "exact" and there is no closed form.
    """
    if permutations in ("auto", "exact"):
        try:
            if callable(distance):
                raise NotAffineError("a callable distance has no closed form")
            if distance == "l1":
                return _exact_l1(reader, track)
            return _exact_mse(reader, agreement, track)
        except NotAffineError as reason:
            if permutations == "exact":
                raise InputError(
                    f"permutations is 'exact', but {reason}; choose a number of permutations, or 'auto'"
                ) from None
        permutations = AUTO_PERMUTATIONS
    assert isinstance(permutations, int)
    return _sampled(reader, agreement, distance, permutations, seed, track)


# --- exact ----------------------------------------------------------------------------------------------------------


class _Affinity:
    """The tail's matrix W, and a check on every batch that the tail is affine.

    W comes from one vector-Jacobian product per logit. For the check, half of the channels of every sample are taken
    from the sample before it, even and odd ones in turn, and what W predicts is compared with what the tail returns.
    """

    def __init__(self, reader: Reader) -> None:
        self.reader = reader
        self.matrix: Tensor | None = None  # (K, C, P)
        self._samples = 0
        self._last: Tensor | None = None
        self._error = self._size = torch.zeros(())

    def check(self, read: Read) -> Tensor:
        """Check one batch and return W.

        Raises:
            NotAffineError: W is too large, or (only in the first batch) the tail contradicts it.
        """
        first = self.matrix is None
        if self.matrix is None:
            outputs, inputs = read.teacher_logits.shape[1], read.activation[0].numel()
            if outputs * inputs > _MATRIX_ELEMENTS:
                raise NotAffineError(
                    f"the matrix of the network after layer {self.reader.layer!r} would have {outputs} x {inputs} "
                    f"entries, more than {_MATRIX_ELEMENTS}"
                )
            self.matrix = _tail_matrix(self.reader, read)
            self._error = self._size = read.teacher_logits.new_zeros(())
        before = read.activation.roll(1, 0)
        if self._last is not None:
            before[0] = self._last
        self._last = read.activation[-1].clone()
        z, before = self.reader.to_channels(read.activation), self.reader.to_channels(before)
        sample = torch.arange(len(z), device=z.device) + self._samples
        channel = torch.arange(z.shape[1], device=z.device)
        exchanged = torch.where(((sample[:, None] + channel) % 2 == 0)[:, :, None], before, z)
        moved = self.reader.continued(self.reader.from_channels(exchanged), read.bypass)
        change = torch.einsum("ncp,kcp->nk", at_least_single(exchanged - z), self.matrix)
        expected = read.teacher_logits + change
        self._error = torch.maximum(self._error, (moved - expected).abs().amax())
        self._size = torch.maximum(self._size, torch.maximum(read.teacher_logits.abs().amax(), moved.abs().amax()))
        self._samples += len(z)
        if first and world_size() == 1:  # several processes must come to one decision, which they do at the end
            self.conclude()
        return self.matrix

    def conclude(self) -> None:
        """Decide once all batches were checked.

        Raises:
            NotAffineError: A batch of any process contradicted W.
        """
        allowed = 8 * relative_tolerance(self.reader.precision) * float(self._size)
        error, allowed = max(gather((float(self._error), allowed)), key=_excess)
        if _excess((error, allowed)) > 0:
            raise NotAffineError(
                f"the network after layer {self.reader.layer!r} is not affine (when channels are exchanged between "
                f"samples, its output differs from the linear prediction by {error:.3g})"
            )


def _excess(found: tuple[float, float]) -> float:
    error, allowed = found
    return error - allowed if math.isfinite(error) else math.inf


def _tail_matrix(reader: Reader, read: Read) -> Tensor:
    one = read.activation[:1].detach()
    bypass = map_tensors(lambda tensor: tensor[:1], read.bypass)
    with torch.enable_grad():
        one = one.requires_grad_()
        logits = reader.split.tail(one, bypass).flatten(1)[0]
        rows = []
        for logit in logits:
            gradient = None
            if logit.requires_grad:
                try:
                    (gradient,) = torch.autograd.grad(logit, one, retain_graph=True, allow_unused=True)
                except RuntimeError as error:
                    raise NotAffineError(
                        f"the network after layer {reader.layer!r} has no gradient ({error})"
                    ) from error
            rows.append(torch.zeros_like(one[0]) if gradient is None else gradient[0])
    return at_least_single(reader.to_channels(torch.stack(rows).detach()))


@dataclass
class _Moments:
    """Count, means and centred products in float64, merged pairwise (Chan, Golub & LeVeque 1983).

    Shapes: K logits, C channels, P positions.
    """

    count: int
    mean_y: Tensor  # (K,)
    mean_z: Tensor  # (C, P)
    products: Tensor  # (K, C, P) sum of (y - mean)(z - mean)
    power: Tensor  # (C,) sum over samples and logits of (W_c (z_c - mean))^2
    squared_error: Tensor  # sum of (h - s)^2 over samples and logits

    @staticmethod
    def of(y: Tensor, z: Tensor, residual: Tensor, matrix: Tensor) -> "_Moments":
        y, z = _double(y), _double(z)
        mean_y, mean_z = y.mean(0), z.mean(0)
        y, z = y - mean_y, z - mean_z
        products = (y.T @ z.flatten(1)).reshape(-1, *z.shape[1:])
        power = _contribution_power(z, matrix)
        return _Moments(len(y), mean_y, mean_z, products, power, _double(residual).square().sum())

    def merge(self, other: "_Moments", matrix: Tensor) -> "_Moments":
        count = self.count + other.count
        between = self.count * other.count / count
        dy, dz = other.mean_y - self.mean_y, other.mean_z - self.mean_z
        return _Moments(
            count,
            self.mean_y + dy * (other.count / count),
            self.mean_z + dz * (other.count / count),
            self.products + other.products + between * dy[:, None, None] * dz,
            self.power + other.power + between * _contribution_power(dz[None], matrix),
            self.squared_error + other.squared_error,
        )


def _double(tensor: Tensor) -> Tensor:
    # Apple's GPUs have no float64.
    return tensor.cpu().double() if tensor.device.type == "mps" else tensor.double()


def _contribution_power(z: Tensor, matrix: Tensor) -> Tensor:
    """(C,): the squared length of every channel's contribution W_c z_c, summed over samples; z is (N, C, P)."""
    if z.shape[2] == 1:
        return z[:, :, 0].square().sum(0) * matrix.square().sum((0, 2))
    z, matrix = z.transpose(0, 1), matrix.permute(1, 2, 0)
    step = max(1, _chunk(z) // (z.shape[1] * matrix.shape[2]))
    parts = [torch.bmm(z[c : c + step], matrix[c : c + step]).square().sum((1, 2)) for c in range(0, len(z), step)]
    return torch.cat(parts)


def _exact_mse(reader: Reader, agreement: bool, track: Any) -> Estimate:
    affinity = _Affinity(reader)
    moments: _Moments | None = None
    matrix = torch.empty(0)
    for read in track(reader):
        matrix = _double(affinity.check(read))
        residual = read.teacher_logits - read.student_logits
        y = read.student_logits if agreement else residual
        batch = _Moments.of(y, reader.to_channels(read.activation), residual, matrix)
        moments = batch if moments is None else moments.merge(batch, matrix)
    affinity.conclude()
    assert moments is not None
    whole, *others = gather(moments)
    for other in others:
        whole = whole.merge(other, matrix)
    covariance = torch.einsum("kcp,kcp->c", matrix, whole.products) / whole.count
    inner = covariance if agreement else whole.power / whole.count - covariance
    classes = len(matrix)
    return Estimate(
        scores=(2 / classes * inner).cpu(),
        standard_error=torch.zeros(len(inner), dtype=torch.float64),
        baseline=float(whole.squared_error) / (whole.count * classes),
        means=reader.positions(whole.mean_z).cpu(),
        permutations="exact",
        samples=whole.count,
    )


def _exact_l1(reader: Reader, track: Any) -> Estimate:
    affinity = _Affinity(reader)
    kept, residuals = Rows(), Rows()
    for read in track(reader):
        affinity.check(read)
        kept.append(reader.to_channels(read.activation))
        residuals.append(read.teacher_logits - read.student_logits)
    affinity.conclude()
    assert affinity.matrix is not None
    matrix = _double(affinity.matrix)
    mine, residual = kept.finish(), _double(residuals.finish()).to(matrix.device)
    everyone = share_rows(mine)
    count, (classes, width, _) = len(everyone), matrix.shape
    totals = _l1_totals(mine, everyone, residual, matrix, track)
    local = torch.cat([totals, residual.abs().sum()[None]])
    summed = torch.stack(gather(local.cpu())).sum(0) / (count * classes)
    return Estimate(
        scores=summed[:-1] - summed[-1],
        standard_error=torch.zeros(width, dtype=torch.float64),
        baseline=float(summed[-1]),
        means=reader.positions(mean_rows(everyone)),
        permutations="exact",
        samples=count,
    )


def _l1_totals(mine: Tensor, everyone: Tensor, residual: Tensor, matrix: Tensor, track: Any) -> Tensor:
    """(C,): the expected distance for every channel, summed over this process's samples and logits."""
    count, (classes, width, positions) = len(everyone), matrix.shape
    if positions == 1 and matrix.device.type == "cpu" and len(mine) * width * classes >= _COMPILED_FROM:
        compiled = compiled_channel_sums(mine[:, :, 0], everyone[:, :, 0], residual, matrix[:, :, 0], track)
        if compiled is not None:
            return compiled
    step = max(1, _chunk(matrix) // (count * classes))
    totals = []
    for c in track(range(0, width, step)):
        weights = matrix[:, c : c + step]
        own = torch.einsum("ncp,kcp->ckn", _double(mine[:, c : c + step].to(weights.device)), weights)
        donor = torch.einsum("ncp,kcp->ckn", _double(everyone[:, c : c + step].to(weights.device)), weights)
        totals.append(mean_absolute_sums(residual.T - own, donor).sum((1, 2)))
    return torch.cat(totals)


# --- sampled --------------------------------------------------------------------------------------------------------


def _sampled(reader: Reader, agreement: bool, distance: Distance, repeats: int, seed: int, track: Any) -> Estimate:
    kept, student, values = Rows(), Rows(), Rows()
    bypasses: list[Rows] = []
    again = False
    for read in track(reader):
        kept.append(read.activation)
        student.append(read.student_logits)
        values.append(_per_sample("mse" if agreement else distance, read.teacher_logits, read.student_logits))
        whole = isinstance(read.bypass, Whole)
        again |= whole
        if not whole:
            bypasses = bypasses or [Rows() for _ in read.bypass]
            for rows, bypass in zip(bypasses, read.bypass, strict=True):
                rows.append(bypass)
    mine, student_logits, local = kept.finish(), student.finish(), values.finish()
    everyone = share_rows(mine)
    count = len(everyone)
    measure = _agreement(share_rows(student_logits)) if agreement else distance
    offset = sum(gather(len(mine))[: rank()])

    # The same M permutations serve every channel: fewer are drawn, and channels are compared under the same conditions.
    generator = torch.Generator().manual_seed(seed)
    permutations = [torch.randperm(count, generator=generator).to(everyone.device) for _ in range(repeats)]

    width = reader.to_channels(mine[:1]).shape[1]
    totals = [torch.zeros(width, dtype=torch.float64) for _ in range(repeats)]
    home = _double(mine[:0]).device  # Apple's GPUs have no float64, so there the sums lie on the CPU
    base = torch.zeros((), dtype=torch.float64)
    # Where the tail is a whole forward, its input is read again. If the data then come in another order, other samples
    # get the same donors, which is a random permutation as well.
    again = any(gather(again))
    stored = (mine, student_logits, [rows.finish() for rows in bypasses])
    for block in track(reader if again else _blocks(reader, *stored)):
        base = base.to(home) + _double(_per_sample(measure, block.teacher_logits, block.student_logits)).sum()
        here = slice(offset, offset + len(block.activation))
        offset = here.stop
        for repeat, permutation in enumerate(permutations):
            donors = everyone[permutation[here]].to(block.activation.device)
            totals[repeat] = totals[repeat].to(home) + _permuted_sums(reader, block, donors, measure)

    # Only now: before, each block would wait for the device.
    parts = [torch.stack(totals).flatten(), base[None], _double(local).sum()[None]]
    summed = torch.stack(gather(torch.cat([value.cpu() for value in parts]))).sum(0)
    rises = (summed[:-2].reshape(repeats, width) - summed[-2]) / count
    spread = rises.std(0) if repeats > 1 else torch.full((width,), math.nan, dtype=torch.float64)
    return Estimate(
        scores=rises.mean(0),
        standard_error=spread / math.sqrt(repeats),
        baseline=float(summed[-1]) / count,
        means=reader.positions(reader.to_channels(mean_rows(everyone)[None])[0]),
        permutations=repeats,
        samples=count,
    )


def _blocks(
    reader: Reader, activation: Tensor, student_logits: Tensor, bypasses: list[Tensor], size: int = 512
) -> Iterator[Read]:
    """The same data a second time, from what was kept."""
    home = device_of(reader.teacher.network)
    for start in range(0, len(activation), size):
        rows = slice(start, start + size)
        kept = activation[rows], student_logits[rows], tuple(bypass[rows] for bypass in bypasses)
        z, student, bypass = to_device(kept, home)
        yield Read(z, reader.continued(z, bypass), student, bypass)


def _permuted_sums(reader: Reader, block: Read, donors: Tensor, measure: Distance) -> Tensor:
    """(C,): the distance, summed over the block's samples, with one channel at a time taken from `donors`."""
    split = reader.split
    z, taken = reader.to_channels(block.activation), reader.to_channels(donors)
    count, width, positions = z.shape
    whole = isinstance(block.bypass, Whole)
    head = split.head if reader.channel_dim == 1 and not whole else None
    if head is not None:
        hidden = nn.functional.linear(z.flatten(1), head.weight, head.bias)
        change = (taken - z).transpose(0, 1).contiguous()
        by_channel = head.weight.T.reshape(width, positions, len(head.weight))
    # A network that could not be cut may mix the samples of a batch, so it gets one channel at a time.
    elements = z.numel() if head is None else hidden.numel()
    step = 1 if whole else max(1, min(width, _chunk(z) // elements))
    sums = []
    for c in range(0, width, step):
        chosen = slice(c, min(c + step, width))
        group = chosen.stop - c
        bypass = block.bypass if group == 1 else map_tensors(functools.partial(_repeat, times=group), block.bypass)
        if head is not None:
            # Changing one channel is a change of rank P in the output of the first linear layer.
            moved = torch.baddbmm(hidden, change[chosen], by_channel[chosen])
            logits = head.rest(moved.flatten(0, 1), bypass)
        else:
            changed = z.repeat(group, 1, 1, 1)
            for i in range(group):
                changed[i, :, c + i] = taken[:, c + i]
            logits = split.tail(reader.from_channels(changed.flatten(0, 1)), bypass)
        logits = at_least_single(logits.flatten(1))
        values = _per_sample(measure, logits, _repeat(block.student_logits, group))
        sums.append(_double(values).reshape(group, count).sum(1))
    return torch.cat(sums)


def _repeat(tensor: Tensor, times: int) -> Tensor:
    return tensor.repeat(times, *[1] * (tensor.ndim - 1))


def _per_sample(distance: Distance, teacher_logits: Tensor, student_logits: Tensor) -> Tensor:
    """(N,): the distance of every sample.

    Raises:
        InputError: A callable distance returns another shape.
    """
    if distance == "mse":
        return (teacher_logits - student_logits).square().mean(1)
    if distance == "l1":
        return (teacher_logits - student_logits).abs().mean(1)
    assert callable(distance)
    values = distance(teacher_logits, student_logits)
    if not isinstance(values, Tensor) or values.shape != (len(teacher_logits),):
        given = tuple(values.shape) if isinstance(values, Tensor) else type(values).__name__
        raise InputError(
            f"distance returned {given} for {len(teacher_logits)} samples; one value per sample was expected, "
            "for instance (teacher - student).abs().sum(1)"
        )
    return values


def _agreement(student_logits: Tensor) -> Callable[[Tensor, Tensor], Tensor]:
    """The part of the squared error that involves the student, -2/K (s - mean) . h; its rise is the agreement."""
    mean = _double(student_logits).mean(0).to(student_logits.dtype)

    def measure(h: Tensor, s: Tensor) -> Tensor:
        return -2 * ((s - mean.to(s.device)) * h).mean(1)

    return measure
