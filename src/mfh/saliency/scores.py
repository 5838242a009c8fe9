"""Which channels of a teacher carry what the student's modality shows too (Algorithm 1, step 2, and the probe)."""

from collections.abc import Iterable
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, get_args

import numpy as np
import torch
from numpy.typing import ArrayLike, NDArray
from torch import nn

from mfh import files
from mfh.data.pairs import as_batch, check_rereadable, to_device
from mfh.errors import InputError, close_names
from mfh.networks.frozen import Frozen
from mfh.networks.layers import capture, check_channel_dim
from mfh.networks.modes import check_one_device, device_of, evaluating, original_layer, placed
from mfh.parallel.distributed import gather
from mfh.progress import track
from mfh.saliency.masks import ChannelMask
from mfh.saliency.permutation import Distance, Permutations, permutation_scores
from mfh.saliency.probe import StudentLayer, layer_names, probe_scores
from mfh.saliency.reader import Reader
from mfh.values import checked

if TYPE_CHECKING:
    from matplotlib.figure import Figure

Score = Literal["distance", "agreement", "probe"]
MaskKind = Literal["general", "specific", "random", "soft"]
Fill = Literal["mean", "zero"]


def channel_saliency(
    teacher: nn.Module | Frozen,
    student: nn.Module | Frozen,
    pairs: Iterable[Any],
    *,
    layer: str,
    channel_dim: int = 1,
    student_layer: StudentLayer = None,
    score: Score = "distance",
    distance: Distance = "mse",
    permutations: Permutations = "auto",
    seed: int = 0,
    device: torch.device | str | None = None,
    progress: bool = False,
) -> "ChannelSaliency":
    """Score every channel of one teacher layer for how modality-general it is.

    There are three scores:

    * "distance" is Algorithm 1, step 2 of Xue et al. (ICLR 2023): permute one channel over all samples and measure how
      much the distance of the teacher's logits to the student's rises. It needs an aligned pair (`align`).
    * "agreement" is the part of that rise which involves the student, 2/K * cov(student logits, contribution of the
      channel). It is free of the redundancy between correlated channels.
    * "probe" is the cross-fitted R^2 of a ridge regression from the student's features to the channel. It needs no
      joint training.

    Networks run in eval mode without gradients; modes, devices, gradients and global random state are left as they
    were. Under torch.distributed each process passes a disjoint part of the data.

    Args:
        teacher: An `nn.Module` that returns logits (N, K).
        student: An `nn.Module` that returns logits (N, K).
        pairs: The (teacher_input, student_input, target) batches: a DataLoader, or another iterable that can be read
            several times. Use the training split.
        layer: The teacher's layer, a name from `named_modules()`. Its output has samples along dim 0.
        channel_dim: The dimension of that output that counts channels.
        student_layer: The student's layer whose flattened output the probe regresses on, or several, whose outputs are
            concatenated. "input" means the student's input, unless a layer has that name. By default the probe reads
            the flattened input of the student's last leaf module with parameters.
        score: The kind of score: "distance", "agreement" or "probe".
        distance: The distance between logits: "mse", "l1", or a callable (teacher_logits, student_logits) that returns
            one value per sample. The scores "agreement" and "probe" take "mse" only.
        permutations: How permutations are averaged. "exact" averages over all of them in closed form and needs a tail
            that is affine in the layer's output. A number draws that many permutations of the whole data set. "auto" is
            exact where possible and otherwise draws 10.
        seed: The random seed of the drawn permutations and of the probe's folds.
        device: The device to run on (default: where each network is).
        progress: Whether to show a progress bar.

    Raises:
        InputError: An argument is not as described, there are fewer than two samples, or logits or scores are not
            finite.

    Example:
        >>> teacher, student = nn.Linear(4, 2), nn.Linear(3, 2)
        >>> teacher = nn.Sequential(nn.Identity(), teacher)
        >>> pairs = [(torch.randn(50, 4), torch.randn(50, 3), torch.zeros(50))]
        >>> saliency = channel_saliency(teacher, student, pairs, layer="0")
        >>> saliency.scores.shape, saliency.permutations
        ((4,), 'exact')
    """
    if score not in get_args(Score):
        raise InputError(f"score is {score!r}; choose one of {', '.join(get_args(Score))}")
    if not callable(distance) and distance not in ("mse", "l1"):
        raise InputError(f"distance is {distance!r}; choose 'mse', 'l1' or a callable")
    if score != "distance" and distance != "mse":
        raise InputError(f"distance is {distance!r}, but score {score!r} takes only 'mse'; use score='distance'")
    permutations = checked("permutations", permutations, Permutations)
    check_rereadable(pairs)
    teacher, student, layer = Frozen.of(teacher), Frozen.of(student), original_layer(layer)
    student_layers = layer_names(student_layer)
    check_one_device(teacher.network, "teacher")
    check_one_device(student.network, "student")
    shown = partial(track, description=f"saliency of {layer}", enabled=progress)
    with placed(device, teacher.network, student.network), evaluating(teacher.network, student.network):
        if score == "probe":
            estimate = probe_scores(
                teacher,
                student,
                pairs,
                layer=layer,
                channel_dim=channel_dim,
                student_layer=student_layers or None,
                seed=seed,
                track=shown,
            )
        else:
            estimate = permutation_scores(
                Reader(teacher, student, pairs, layer, channel_dim),
                agreement=score == "agreement",
                distance=distance,
                permutations=permutations,
                seed=seed,
                track=shown,
            )
        teacher_digest, student_digest = teacher.fingerprint, student.fingerprint
    if not bool(torch.isfinite(estimate.scores).all()):
        raise InputError(
            f"{int((~torch.isfinite(estimate.scores)).sum())} of {len(estimate.scores)} scores are NaN or infinite "
            "although all logits are finite; check the distance, and the activations and weights for overflow"
        )
    return ChannelSaliency(
        scores=estimate.scores.numpy(),
        standard_error=estimate.standard_error.numpy(),
        baseline=estimate.baseline,
        means=estimate.means.numpy(),
        layer=layer,
        channel_dim=channel_dim if channel_dim > 0 else estimate.means.ndim + 1 + channel_dim,
        score=score,
        distance=distance_name(distance),
        permutations=estimate.permutations,
        samples=estimate.samples,
        fingerprint=teacher_digest,
        student_fingerprint=student_digest,
        student_layer=", ".join(student_layers) if score == "probe" else "",
    )


@dataclass(frozen=True, eq=False, repr=False)
class ChannelSaliency:
    """How modality-general each channel of a teacher's layer is. Made by `channel_saliency`.

    Args:
        scores: (C,), one score per channel; larger is more general. "distance": how much the distance to the student
            rises over the unpermuted one, E[Dist_c] - Dist. "agreement": the part of it that involves the student.
            "probe": the cross-fitted R^2.
        standard_error: (C,), the standard error of the scores; zero where they are exact, NaN after a single
            permutation.
        baseline: The distance between the unpermuted logits of teacher and student.
        means: (C, *positions), the mean activation over the data.
        layer: The teacher's layer, a name from `named_modules()`.
        channel_dim: The dimension of the layer's output that counts channels.
        score: The kind of score: "distance", "agreement" or "probe".
        distance: "mse", "l1" or the name of a callable; "given" for scores computed elsewhere.
        permutations: "exact", the number of permutations drawn, or None for the probe and for scores computed
            elsewhere.
        samples: The number of pairs read.
        fingerprint: The fingerprint of the teacher's weights.
        student_fingerprint: The fingerprint of the student's weights; empty for scores computed elsewhere.
        student_layer: The student's layer whose output the probe read, several separated by commas; empty for the
            default and for the other scores.
    """

    scores: NDArray[np.float64]
    standard_error: NDArray[np.float64]
    baseline: float
    means: NDArray[np.float64]
    layer: str
    channel_dim: int
    score: Score
    distance: str
    permutations: Literal["exact"] | int | None
    samples: int
    fingerprint: str
    student_fingerprint: str = ""
    student_layer: str = ""

    @property
    def normalized(self) -> NDArray[np.float64]:
        """(C,): the scores mapped linearly to [0, 1]; all zero if all scores are equal."""
        span = np.ptp(self.scores)
        return (self.scores - self.scores.min()) / span if span else np.zeros_like(self.scores)

    @property
    def ranking(self) -> NDArray[np.intp]:
        """(C,): channel indices, the most modality-general first; equal scores in order of index."""
        return np.argsort(-self.scores, kind="stable")

    def mask(self, kind: MaskKind, ratio: float | None = None, *, fill: Fill = "mean", seed: int = 0) -> ChannelMask:
        """Make a mask for the teacher that was scored.

        Args:
            kind: Which channels the mask removes. "general" removes those with the lowest scores, "specific" those with
                the highest, "random" any, drawn without replacement. "soft" removes none and weights all of them: by
                `soft_weights` of the probe's R^2, or by `normalized` for the other scores.
            ratio: The fraction of channels to remove, in [0, 1), rounded down to whole channels; none for "soft".
            fill: What a removed channel becomes: its "mean" over the data set, or "zero".
            seed: The random seed of a "random" mask.

        Raises:
            InputError: The kind or the fill is unknown, or the ratio is missing, superfluous or outside [0, 1).
        """
        if kind not in get_args(MaskKind):
            raise InputError(f"kind of mask is {kind!r}; {close_names(str(kind), list(get_args(MaskKind)))}")
        if fill not in get_args(Fill):
            raise InputError(f"fill is {fill!r}; choose 'mean' or 'zero'")
        width = len(self.scores)
        if kind == "soft":
            if ratio is not None:
                raise InputError(f"ratio is {ratio}, but a soft mask removes nothing; leave the ratio out")
            weights = soft_weights(self.scores) if self.score == "probe" else self.normalized
        else:
            if ratio is None or not 0 <= ratio < 1:
                raise InputError(
                    f"ratio is {ratio}; a {kind} mask needs the fraction of channels to remove, at least 0 and below 1"
                )
            count = int(ratio * width + 1e-9)
            order = {
                "general": self.ranking[::-1],
                "specific": self.ranking,
                "random": np.random.default_rng(seed % 2**63).permutation(width),
            }[kind]
            weights = np.ones(width)
            weights[order[:count]] = 0.0
        return ChannelMask(
            layer=self.layer,
            weights=weights,
            means=self.means if fill == "mean" else np.zeros_like(self.means),
            fingerprint=self.fingerprint,
            channel_dim=self.channel_dim,
            kind=kind,
            score=None if kind == "random" else self.score,
            ratio=None if ratio is None else float(ratio),
        )

    @classmethod
    def from_scores(
        cls,
        scores: ArrayLike,
        teacher: nn.Module | Frozen,
        pairs: Iterable[Any],
        *,
        layer: str,
        channel_dim: int = 1,
        score: Score = "distance",
        device: torch.device | str | None = None,
    ) -> "ChannelSaliency":
        """Make a saliency from scores computed elsewhere: published scores, or those of a method of your own.

        The teacher is run once over the pairs to compute the channels' means, which masks need. Under
        torch.distributed each process passes a disjoint part of the data.

        Args:
            scores: (C,), one score per channel; larger is more general.
            teacher: An `nn.Module`, the network whose channels were scored.
            pairs: The batches, as in `channel_saliency`; the student's input is not read.
            layer: The teacher's layer, a name from `named_modules()`.
            channel_dim: The dimension of that layer's output that counts channels.
            score: The kind of score to record. "probe" says that the scores are an R^2.
            device: The device to run on (default: where the teacher is).

        Raises:
            InputError: The scores are not one finite number per channel of the layer, or there are no samples.

        Example:
            >>> teacher = nn.Sequential(nn.Identity(), nn.Linear(4, 2))
            >>> pairs = [(torch.ones(5, 4), torch.zeros(5, 1), torch.zeros(5))]
            >>> saliency = ChannelSaliency.from_scores([0.1, 0.4, 0.3, 0.2], teacher, pairs, layer="0")
            >>> saliency.mask("general", ratio=0.5).removed
            array([0, 3])
        """
        given = np.array(scores, dtype=np.float64)
        check_rereadable(pairs)
        teacher, layer = Frozen.of(teacher), original_layer(layer)
        total, samples, shape = torch.zeros(0), 0, torch.Size()
        with placed(device, teacher.network), evaluating(teacher.network):
            home = device_of(teacher.network)
            for item in pairs:
                activation, _ = capture(
                    teacher.network, layer, to_device(as_batch(item, labelled=False).teacher_input, home)
                )
                channel_dim = check_channel_dim(activation, channel_dim, layer)
                sums = activation.movedim(channel_dim, 1).double().sum(0).cpu()
                total = sums if not samples else total + sums
                samples, shape = samples + len(activation), activation.shape
            digest = teacher.fingerprint
        passes = [(sums, count) for sums, count in gather((total, samples)) if count]
        if not passes:
            raise InputError("pairs has no samples; give at least one batch")
        total, samples = torch.stack([sums for sums, _ in passes]).sum(0), sum(count for _, count in passes)
        if given.shape != total.shape[:1] or not np.isfinite(given).all():
            raise InputError(
                f"scores have shape {given.shape}, but layer {layer!r} returns shape {tuple(shape)}; one finite number "
                f"for each of its {len(total)} channels was expected"
            )
        return cls(
            scores=given,
            standard_error=np.zeros_like(given),
            baseline=float("nan"),
            means=(total / samples).numpy(),
            layer=layer,
            channel_dim=channel_dim,
            score=score,
            distance="given",
            permutations=None,
            samples=samples,
            fingerprint=digest,
        )

    def save(self, path: str | Path) -> None:
        """Write the saliency to a safetensors file, atomically."""
        files.save_fields(self, path, "saliency")

    @classmethod
    def load(cls, path: str | Path) -> "ChannelSaliency":
        """Read a saliency that `save` wrote.

        Raises:
            InputError: There is no such file, or it is not a saliency.
        """
        return files.load_fields(cls, path, "saliency")

    def plot(
        self, path: str | Path | None = None, *, ratio: float | None = None, truth: NDArray[np.bool_] | None = None
    ) -> "Figure":
        """Draw how the scores of the channels are distributed; where the truth is known, also their ROC curve.

        Args:
            path: The picture's path; its ending sets the format (svg, pdf, png). None writes no file.
            ratio: The fraction of channels that a general mask removes, whose scores are shaded; None shades nothing.
            truth: (C,) booleans that say whether a channel is modality-general, where that is known.

        Returns:
            The matplotlib figure, which a notebook shows.
        """
        from mfh.figures.saliency import draw_saliency
        from mfh.figures.style import save_figure

        figure = draw_saliency(self.scores, score=self.score, ratio=ratio, truth=truth)
        if path is not None:
            save_figure(figure, path)
        return figure

    def __repr__(self) -> str:
        width = f"{len(self.scores)} channels of layer {self.layer!r}"
        best = ", ".join(map(str, self.ranking[:3]))
        return f"ChannelSaliency({self.score}, {width}, {self.samples} pairs, most general: {best})"


def soft_weights(r2: ArrayLike) -> NDArray[np.float64]:
    """The weights of a soft mask: how much of each channel the student can see, relative to the best channels.

    w_c = min(1, R^2_c / ceiling), with R^2 clipped to [0, 1]. The ceiling is the 95th percentile of R^2 over channels,
    and at least 0.1. It is there because features that miss half of what the student's modality shows lower the R^2 of
    all channels alike; the 95th percentile says how much the best ones keep. The floor of 0.1 keeps noise from being
    scaled up where the student sees next to nothing. docs/choosing.md compares these weights with R^2 itself, in
    synthetic settings with known truth.

    Args:
        r2: (C,), the probe's R^2 of every channel.

    Returns:
        (C,), the weights in [0, 1].

    Example:
        >>> soft_weights([0.4, 0.4, 0.1, -0.01])
        array([1.  , 1.  , 0.25, 0.  ])
    """
    seen = np.clip(np.asarray(r2, dtype=np.float64), 0, 1)
    return np.clip(seen / max(float(np.quantile(seen, 0.95)), 0.1), 0, 1)


def distance_name(distance: Distance) -> str:
    """The distance's name in files and tables."""
    return getattr(distance, "__name__", type(distance).__name__) if callable(distance) else distance
