"""Run both networks over the pairs, batch by batch, and check everything they return."""

from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch import Tensor, nn

from mfh.data.pairs import Nested, PairedBatch, as_batch, num_samples, to_device
from mfh.errors import InputError
from mfh.networks.calling import call
from mfh.networks.cut import Passed, Split
from mfh.networks.frozen import Frozen
from mfh.networks.layers import (
    as_logits,
    capture,
    check_channel_dim,
    find_layer,
    from_channels,
    to_channels,
    warn_of_tokens,
)
from mfh.networks.modes import device_of, reading_samples
from mfh.networks.precision import at_least_single
from mfh.parallel.distributed import gather


@dataclass(frozen=True)
class Estimate:
    """The scores of all channels and what was measured with them; all tensors are on the CPU.

    Args:
        scores: (C,) float64, the scores.
        standard_error: (C,) float64, the standard error over repeats; zero where the scores are exact.
        baseline: The mean squared error (or the chosen distance) between the unpermuted logits of both networks.
        means: (C, *positions), the mean activation over the data set.
        permutations: "exact", the number of permutations drawn, or None if the score needs no permutations.
        samples: The number of pairs read.
    """

    scores: Tensor
    standard_error: Tensor
    baseline: float
    means: Tensor
    permutations: Literal["exact"] | int | None
    samples: int


@dataclass(frozen=True)
class Read:
    """One batch that went through both networks.

    Args:
        activation: The output of the teacher's layer, in the shape the layer returns.
        teacher_logits: (N, K).
        student_logits: (N, K), on the teacher's device.
        bypass: What `Split.tail` needs besides the activation.
        features: (N, F), the student's features, or None if the reader was not asked for them.
    """

    activation: Tensor
    teacher_logits: Tensor
    student_logits: Tensor
    bypass: Nested = None
    features: Tensor | None = None


class Reader:
    """Runs both networks over the pairs and checks what they return. Iterate over it for one pass over the data.

    Args:
        teacher: An `nn.Module` in eval mode.
        student: An `nn.Module` in eval mode.
        pairs: The batches; they can be iterated over several times.
        layer: The teacher's layer, a name from `named_modules()`.
        channel_dim: The dimension of the layer's output that counts channels.
        features: A function (student, input) -> (logits, features), for the probe. The teacher is then only read and
            not cut.
    """

    def __init__(
        self,
        teacher: nn.Module | Frozen,
        student: nn.Module | Frozen,
        pairs: Iterable[Any],
        layer: str,
        channel_dim: int,
        features: Callable[[nn.Module, Nested], tuple[Tensor, Tensor]] | None = None,
    ) -> None:
        self.teacher, self.student = Frozen.of(teacher), Frozen.of(student)
        find_layer(self.teacher.network, layer)
        self.pairs, self.layer = pairs, layer
        self.channel_dim, self._features = channel_dim, features
        self.shape = torch.Size()
        self.precision = torch.float32
        self._split: Split | None = None
        self._samples: int | None = None

    @property
    def split(self) -> Split:
        """The teacher, cut at the layer. It exists once the first batch was read."""
        assert self._split is not None
        return self._split

    def __iter__(self) -> Iterator[Read]:
        """Read all batches once.

        Raises:
            InputError: A batch or what a network returns for it is not as expected. After the last batch: there were
                fewer than two samples, or another number than in the first pass. Under torch.distributed all processes
                raise it if one does.
        """
        finite: dict[str, Tensor] = {}
        samples = 0
        for item in self.pairs:
            batch = as_batch(item, labelled=False)
            if not num_samples(batch.teacher_input):
                continue
            read = self._read(batch, samples)
            for role, logits in (("teacher", read.teacher_logits), ("student", read.student_logits)):
                well = torch.isfinite(logits).all()
                finite[role] = finite[role] & well if role in finite else well
            if not samples:  # only once: it waits for the device. Errors that NaN causes later are hard to understand.
                self._check_finite([finite])
            samples += len(read.activation)
            yield read
        passes = gather((samples, {role: well.cpu() for role, well in finite.items()}))
        self._check_finite([well for _, well in passes])
        self._check_counts([count for count, _ in passes])
        if self._samples not in (None, samples):
            raise InputError(
                f"pairs gave {self._samples} samples when first read and then {samples}; the same samples were "
                "expected every time: give a DataLoader or a list of batches"
            )
        self._samples = samples

    def _check_finite(self, passes: list[dict[str, Tensor]]) -> None:
        for role in ("teacher", "student"):
            if not all(bool(finite.get(role, True)) for finite in passes):
                raise InputError(f"the {role} returned NaN or infinite logits; check its weights and its input")

    def _check_counts(self, counts: list[int]) -> None:
        total = sum(counts)
        if total < 2:
            raise InputError(f"pairs has {total or 'no'} sample{'s' * (total != 1)}; give at least 2")
        if not all(counts):
            raise InputError(
                f"process {counts.index(0)} of {len(counts)} has no samples; give each process at least one batch"
            )

    def _read(self, batch: PairedBatch, first: int) -> Read:
        home = device_of(self.teacher.network)
        inputs = to_device(batch.teacher_input, home)
        with reading_samples("teacher", first, num_samples(batch.teacher_input)):
            if self._features is not None:
                passed = Passed(*capture(self.teacher.network, self.layer, inputs), None)
            else:
                self._split = self._split or self.teacher.split(self.layer, inputs)
                passed = self._split(inputs)
        if not self.shape:
            self.channel_dim = check_channel_dim(passed.activation, self.channel_dim, self.layer)
            warn_of_tokens(self.teacher.network, self.layer, passed.activation, self.channel_dim)
            self.shape = passed.activation.shape[1:]
        elif passed.activation.shape[1:] != self.shape:
            raise InputError(
                f"layer {self.layer!r} returns shape {tuple(self.shape)} per sample in one batch and "
                f"{tuple(passed.activation.shape[1:])} in another; one shape for all samples was expected: pad or "
                "pool the input, or choose a later layer"
            )
        student = self.student.network
        student_input = to_device(batch.student_input, device_of(student))
        features = None
        with reading_samples("student", first, num_samples(batch.teacher_input)):
            if self._features is None:
                student_logits = as_logits(call(student, student_input)).to(home)
            else:
                student_logits, features = self._features(student, student_input)
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
        """Run the teacher from the layer on: its logits, flattened to (N, K)."""
        return at_least_single(self.split.tail(activation, bypass).flatten(1))

    def to_channels(self, activation: Tensor) -> Tensor:
        """Rearrange the layer's output to (N, C, P)."""
        return to_channels(activation, self.channel_dim)

    def from_channels(self, rows: Tensor) -> Tensor:
        """Undo `to_channels`: from (N, C, P) to the shape of the layer's output."""
        return from_channels(rows, torch.Size([len(rows), *self.shape]), self.channel_dim)

    def positions(self, means: Tensor) -> Tensor:
        """Reshape one sample's channels, or their means, from (C, P) to (C, *positions)."""
        return self.from_channels(means[None])[0].movedim(self.channel_dim - 1, 0).contiguous()
