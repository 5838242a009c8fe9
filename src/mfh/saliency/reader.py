"""Both networks run over the pairs, batch by batch, with everything they return checked."""

from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch import Tensor, nn

from mfh.data.pairs import Nested, PairedBatch, as_batch, to_device
from mfh.errors import InputError
from mfh.networks import cut
from mfh.networks.cut import Passed
from mfh.networks.layers import as_logits, capture, check_channel_dim, find_layer, from_channels, to_channels
from mfh.networks.modes import device_of
from mfh.networks.precision import at_least_single
from mfh.parallel.distributed import gather


@dataclass(frozen=True)
class Estimate:
    """What a score is made of; all on the CPU.

    Args:
        scores: (C,) float64.
        standard_error: (C,) float64, over repeats; zero when exact.
        baseline: mean squared error (or the chosen distance) of the unpermuted logits.
        means: (C, *positions) mean activation over the data set.
        permutations: "exact", how many were drawn, or None if none are involved.
        samples: pairs read.
    """

    scores: Tensor
    standard_error: Tensor
    baseline: float
    means: Tensor
    permutations: Literal["exact"] | int | None
    samples: int


@dataclass(frozen=True)
class Read:
    """One batch through both networks.

    Args:
        activation: the tapped layer's output as the layer returns it.
        teacher_logits: (N, K).
        student_logits: (N, K), on the teacher's device.
        bypass: for `Split.tail`.
        features: (N, F) of the student, if asked for.
    """

    activation: Tensor
    teacher_logits: Tensor
    student_logits: Tensor
    bypass: Nested = None
    features: Tensor | None = None


class Reader:
    """Runs both networks over the pairs, checking what they return.

    Args:
        teacher: frozen, in eval mode.
        student: frozen, in eval mode.
        pairs: re-iterable batches.
        layer: of the teacher.
        channel_dim: of the layer's output.
        features: (student, input) -> logits and features, for the probe. The teacher is then only read, not cut.
    """

    def __init__(
        self,
        teacher: nn.Module,
        student: nn.Module,
        pairs: Iterable[Any],
        layer: str,
        channel_dim: int,
        features: Callable[[nn.Module, Nested], tuple[Tensor, Tensor]] | None = None,
    ) -> None:
        find_layer(teacher, layer)
        self.teacher, self.student, self.pairs, self.layer = teacher, student, pairs, layer
        self.channel_dim, self._features = channel_dim, features
        self.shape = torch.Size()
        self.precision = torch.float32
        self._split: cut.Split | None = None
        self._samples: int | None = None

    @property
    def split(self) -> cut.Split:
        """The teacher, cut at the layer; available once a batch was read."""
        assert self._split is not None
        return self._split

    def __iter__(self) -> Iterator[Read]:
        """One pass; raises InputError at its end if there were too few samples or logits that are not finite.

        Under torch.distributed all processes raise if one does.
        """
        finite: dict[str, Tensor] = {}
        samples = 0
        for item in self.pairs:
            batch = as_batch(item)
            if not len(batch.target):
                continue
            read = self._read(batch)
            for role, logits in (("teacher", read.teacher_logits), ("student", read.student_logits)):
                well = torch.isfinite(logits).all()
                finite[role] = finite[role] & well if role in finite else well
            if not samples:  # here waiting for the device costs nothing, and what follows would not understand NaN
                self._check_finite([finite])
            samples += len(read.activation)
            yield read
        passes = gather((samples, {role: well.cpu() for role, well in finite.items()}))
        self._check_finite([well for _, well in passes])
        self._check_counts([count for count, _ in passes])
        if self._samples not in (None, samples):
            raise InputError(
                f"pairs gave {self._samples} samples when first read and then {samples}; give a DataLoader or a list "
                "of batches, which give the same samples every time"
            )
        self._samples = samples

    def _check_finite(self, passes: list[dict[str, Tensor]]) -> None:
        for role in ("teacher", "student"):
            if not all(bool(finite.get(role, True)) for finite in passes):
                raise InputError(f"the {role} returned NaN or infinite logits; check its weights and its input")

    def _check_counts(self, counts: list[int]) -> None:
        total = sum(counts)
        if total < 2:
            raise InputError(f"pairs has {total or 'no'} sample{'s' * (total != 1)}; permuting needs at least 2")
        if not all(counts):
            raise InputError(f"process {counts.index(0)} of {len(counts)} has no samples; each needs at least one")

    def _read(self, batch: PairedBatch) -> Read:
        home = device_of(self.teacher)
        inputs = to_device(batch.teacher_input, home)
        if self._features is not None:
            passed = Passed(*capture(self.teacher, self.layer, inputs), None)
        else:
            self._split = self._split or cut.split(self.teacher, self.layer, inputs)
            passed = self._split(inputs)
        if not self.shape:
            self.channel_dim = check_channel_dim(passed.activation, self.channel_dim, self.layer)
            self.shape = passed.activation.shape[1:]
        elif passed.activation.shape[1:] != self.shape:
            raise InputError(
                f"layer {self.layer!r} returns shape {tuple(self.shape)} per sample in one batch and "
                f"{tuple(passed.activation.shape[1:])} in another; permuting over samples needs one shape: pad or "
                "pool the input, or choose a later layer"
            )
        student_input = to_device(batch.student_input, device_of(self.student))
        features = None
        if self._features is None:
            student_logits = as_logits(self.student(student_input)).to(home)
        else:
            student_logits, features = self._features(self.student, student_input)
            student_logits = student_logits.to(home)
        if student_logits.shape != passed.logits.shape:
            raise InputError(
                f"the teacher returns logits of shape {tuple(passed.logits.shape)} and the student "
                f"{tuple(student_logits.shape)}; both must have the same classes"
            )
        self.precision = passed.logits.dtype
        teacher_logits, student_logits = (
            at_least_single(logits.flatten(1)) for logits in (passed.logits, student_logits)
        )
        return Read(passed.activation, teacher_logits, student_logits, passed.bypass, features)

    def continued(self, activation: Tensor, bypass: Nested) -> Tensor:
        """Logits of the rest of the teacher, (N, K) with K counting all outputs."""
        return at_least_single(self.split.tail(activation, bypass).flatten(1))

    def to_channels(self, activation: Tensor) -> Tensor:
        """(N, C, P) of a layer's output."""
        return to_channels(activation, self.channel_dim)

    def from_channels(self, rows: Tensor) -> Tensor:
        """A layer's output of (N, C, P)."""
        return from_channels(rows, torch.Size([len(rows), *self.shape]), self.channel_dim)

    def positions(self, means: Tensor) -> Tensor:
        """(C, *positions) of (C, P)."""
        return self.from_channels(means[None])[0].movedim(self.channel_dim - 1, 0).contiguous()
