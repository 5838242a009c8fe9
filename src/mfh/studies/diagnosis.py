"""A verdict on whether distillation will help and by how much, made before any student is distilled.

The verdict rests on the *forecast* (`mfh.studies.forecast`), which needs no trained network. Other criteria are
reported beside it; they need two networks trained on labels, which a study trains anyway, and say what the modalities
share and what a mask would leave of the teacher. All fits (ridge regressions, in closed form) are judged on pairs that
they were not fitted to. docs/when-not.md says how well the forecast and the other criteria predicted measured gains.
"""

import dataclasses
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, get_args

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import Subset

from mfh.data.epochs import PairLoader, all_targets
from mfh.data.pairs import to_device
from mfh.errors import InputError
from mfh.networks.layers import find_layer
from mfh.networks.modes import evaluating, placed
from mfh.problems.losses import KDLoss
from mfh.problems.scale import Scale
from mfh.saliency.masks import masked_logits
from mfh.saliency.probe import read_features, student_features
from mfh.studies import records
from mfh.studies.criteria import (
    FEWEST,
    MOST,
    Measure,
    TrainingViews,
    Views,
    accuracy_of,
    centred,
    complementarity,
    cosine_gap,
    estimate_shares,
    head_trial,
    kernel_alignment,
    mutual_neighbours,
    non_target_divergence,
    sampled_rows,
    slope,
    training_trial,
    visible_share,
)
from mfh.studies.folder import Run
from mfh.studies.forecast import Forecast, finite, forecast
from mfh.studies.networks import Role
from mfh.studies.seed import Seed
from mfh.studies.settings import Settings
from mfh.studies.steps import open_seed, refuse_torchrun
from mfh.training.fitting import evaluate

if TYPE_CHECKING:
    from collections.abc import Callable

    from mfh.tasks.task import Task


#: What a diagnosis is within a run folder; it may be kept under another name.
_PLACE = "diagnosis"
Outcome = Literal["likely to help", "not likely to help", "cannot tell"]

#: A gain, in points, that is worth a teacher: where the forecast excludes it, distillation is not likely to help.
WORTH = 2.0
#: AUROC, of labelled against unlabelled pairs, above which a diagnosis says that they differ.
SHIFTED = 0.9


@dataclass(frozen=True)
class LayerView:
    """What the student's features predict of one layer of the teacher.

    Args:
        layer: Name of the layer.
        channels: Number of channels of the layer.
        seen: Mean R^2 of the channels from the student's features, each clipped to [0, 1].
        share: Share of the teacher's decision that is left under the soft mask: the slope of the masked logits over the
            full ones. With an affine tail and uncorrelated channels, this is the mean of the mask's weights, weighted
            by each channel's part in the decision.
        accuracy: Accuracy of the softly masked teacher on the validation split; None without classes.
        trial: Trial of heads on the training pairs for the arm `soft` at this layer.
        held_out: The same trial on validation pairs alone.
        note: What is wrong with the layer; empty if nothing is.
    """

    layer: str
    channels: int
    seen: float
    share: Measure
    accuracy: float | None
    trial: Measure
    held_out: Measure
    note: str = ""


@dataclass(frozen=True, repr=False)
class Diagnosis:
    """What `diagnose` found; `print` shows its `report`.

    Everything but the layers' saliencies is measured on the validation split.

    Args:
        task: Name of the task.
        seed: Random seed of data, networks and folds.
        verdict: The verdict on plain distillation (the arm `regular`) with all training pairs: "likely to help" where
            the 90 % interval of the forecast lies above zero, "not likely to help" where it lies below `WORTH`, and
            "cannot tell" otherwise.
        reasons: Reasons for the verdict, one sentence each.
        forecast: What plain distillation is expected to gain, in units of the metric, with and without the unlabelled
            pairs.
        trial: Trial of heads on the training pairs for the arm `regular`: the rise of the correlation with the labels
            of validation pairs.
        held_out: The same trial on validation pairs alone, with a teacher that has not seen their labels.
        alpha: Estimate of s_a / (s_a + g); see `estimate_shares`.
        beta: Estimate of s_b / (s_b + g).
        gamma: Estimate of g / (g + s_a + s_b).
        visible: R^2 of the teacher's logits from the student's features.
        surplus: R^2 of the labels minus the teacher's predictions from the student's features: what the student's
            modality knows and the teacher does not.
        non_target_divergence: Divergence of both networks among the wrong classes; see `non_target_divergence`.
        complementarity: Difference of mutual informations; see `complementarity`.
        kernel_alignment: CKA of both networks' features; see `kernel_alignment`.
        mutual_neighbours: Agreement on nearest neighbours; see `mutual_neighbours`.
        cosine_gap: Gap between both networks' logits; see `cosine_gap`.
        teacher_accuracy: The task's metric for the teacher on the validation split.
        student_accuracy: The same for the student trained on labels.
        scale: How to show the metric.
        layers: One `LayerView` for each layer that was looked into.
        samples: Number of validation pairs read.
        num_train: Number of labelled training pairs.
        num_unlabelled: Number of training pairs without labels.
    """

    task: str
    seed: int
    verdict: Outcome
    reasons: tuple[str, ...]
    forecast: Forecast
    trial: Measure
    held_out: Measure
    alpha: Measure
    beta: Measure
    gamma: Measure
    visible: Measure
    surplus: Measure
    non_target_divergence: Measure
    complementarity: Measure
    kernel_alignment: Measure
    mutual_neighbours: Measure
    cosine_gap: Measure
    teacher_accuracy: float
    student_accuracy: float
    scale: Scale
    layers: tuple[LayerView, ...]
    samples: int
    num_train: int
    num_unlabelled: int = 0

    def __repr__(self) -> str:
        return f"Diagnosis({self.task}, seed {self.seed}: {self.verdict}, {in_words(self.forecast.gain, self.scale)})"

    def __str__(self) -> str:
        return self.report()

    def report(self) -> str:
        """The tables of criteria and layers, the verdict and its reasons, as `mfh diagnose` prints them."""
        from mfh.studies.diagnosis_text import diagnosis_text

        return diagnosis_text(self)

    def save(self, path: str | Path) -> None:
        """Write everything as JSON, atomically."""
        records.write_record(Path(path), dataclasses.asdict(self), _PLACE)

    @classmethod
    def load(cls, path: str | Path) -> "Diagnosis":
        """Read what `save` wrote.

        Raises:
            InputError: There is no such file, or it does not hold a diagnosis.
        """
        content = records.read_record(Path(path), dict[str, Any], "diagnose again", _PLACE)
        try:
            found: Diagnosis = records.fitted(content, cls)
        except ValueError as error:
            raise InputError(
                f"{path} is not a diagnosis that this version of mfh can read ({error}); diagnose again"
            ) from None
        return found


def diagnose(
    task: "str | Path | Task | Callable[..., Task]",
    *,
    layers: Sequence[str] = (),
    seed: int = 0,
    out: str | Path | None = None,
    settings: Settings | None = None,
    progress: bool = False,
    **changes: Any,
) -> Diagnosis:
    """Predict whether distillation is likely to help and by how much, before any student is distilled.

    A teacher and a student are trained on labels, unless checkpoints are given or the run folder holds them already. A
    study in the same folder uses them again. No student is distilled, and the test split is not read.

    Args:
        task: A task as `find_task` accepts it.
        layers: Layers of the teacher to look into (default: the task's layer).
        seed: Random seed of data, initial weights, order of data and folds.
        out: Run folder, which gets `diagnosis.json` and the networks. None keeps nothing.
        settings: Training, loss, given files and device; see `Settings`. The weights of the loss say how labels and
            teacher are mixed.
        progress: Whether to show progress bars.
        **changes: Single settings by name, as `Settings.of` takes them: `epochs=5`, `device="cpu"`.

    Raises:
        InputError: Something is not as described, the teacher is known only by its outputs, or the validation split
            has too few pairs or one class only.
    """
    for name in ("processes", "threads"):
        if changes.get(name) is not None:
            raise InputError(f"{name} is {changes[name]}, but a diagnosis runs in this process; leave it out")
    settings = (settings or Settings()).changed(**changes)
    refuse_torchrun("a diagnosis")
    with open_seed(task, seed=seed, out=out, settings=settings, layers=layers, progress=progress) as made:
        diagnosis = diagnose_seed(made, layers)
        if out is not None:
            Run(out).write_diagnosis(diagnosis)
    return diagnosis


def diagnose_seed(made: Seed, layers: Sequence[str] = ()) -> Diagnosis:
    """Diagnose a seed whose task and settings are already open; see `diagnose`."""
    task, networks = made.task, made.networks
    if task.teacher is None:
        raise InputError(
            f"task {task.name!r} has no teacher network, only outputs on the training split, which say nothing about "
            "held-out pairs; a diagnosis needs the network"
        )
    layers = tuple(dict.fromkeys(layers)) or (task.layer,)
    if len(task.val) < FEWEST:  # before networks are trained
        raise InputError(
            f"task {task.name!r} has {len(task.val)} validation pairs; a diagnosis needs at least {FEWEST}: "
            f"val={FEWEST} in Task.from_arrays, --set val={FEWEST} for a file of arrays, or a larger split val"
        )
    for layer in layers:
        find_layer(networks.new("teacher"), layer)
    # Training finds mistakes in networks and data, and tells them in one line, so it comes first.
    teacher, student = (
        evaluate(networks.pretrained(role).network, task.val, role, problem=task.problem) for role in get_args(Role)
    )
    seen = _seen_of_classes(made, layers) if task.problem.name == "classification" else _seen_of_numbers(made, layers)
    ahead = forecast(networks)
    verdict = outcome_of(ahead.gain, task.problem.metric.scale)
    return Diagnosis(
        task=task.name,
        seed=made.seed,
        verdict=verdict,
        reasons=(
            *_reasons(made, ahead),
            *_mask_reasons(ahead, task.problem.metric.scale),
            *_remarks(seen["layers"]),
        ),
        forecast=ahead,
        scale=task.problem.metric.scale,
        samples=min(len(task.val), MOST),
        num_train=len(task.train),
        num_unlabelled=len(task.pairs) - len(task.train),
        teacher_accuracy=teacher,
        student_accuracy=student,
        **seen,
    )


def _seen_of_numbers(made: Seed, layers: Sequence[str]) -> dict[str, Any]:
    """The criteria of a problem without one class per sample: what the student's features predict of each layer."""
    unknown = Measure(None, note="needs one class per sample")
    found = []
    for layer in layers:
        scores = made.saliency("probe", layer).scores
        found.append(
            LayerView(layer, len(scores), float(np.clip(scores, 0, 1).mean()), unknown, None, unknown, unknown)
        )
    return dict.fromkeys(_CRITERIA, unknown) | {"layers": tuple(found)}


#: Fields of a diagnosis that need one class per sample.
_CRITERIA = (
    *("trial", "held_out", "alpha", "beta", "gamma", "visible", "surplus", "non_target_divergence"),
    *("complementarity", "kernel_alignment", "mutual_neighbours", "cosine_gap"),
)


def _seen_of_classes(made: Seed, layers: Sequence[str]) -> dict[str, Any]:
    """All criteria beside the forecast, from networks trained on labels."""
    task, networks = made.task, made.networks
    views = _views(made)
    num_train, rows, stands_for = len(task.train), *_sampled_rows(made)
    pairs = task.pairs if len(rows) == len(task.pairs) else Subset(task.pairs, rows)
    held_out, training = (
        PairLoader(data, num_workers=made.recipe.num_workers) for data in (_held_out_pairs(made), pairs)
    )
    features = _student_features(made, training)
    teacher = networks.pretrained("teacher").frozen
    target = all_targets(task.train)[[row for row in rows if row < num_train]]

    def trial_of(logits: Tensor) -> Measure:
        seen = TrainingViews(target, logits.cpu(), features, stands_for)
        return training_trial(views, seen, loss=_mixture(made), seed=made.seed)

    found = []
    for layer in layers:
        saliency = made.saliency("probe", layer)
        mask = saliency.mask("soft")
        (soft,) = masked_logits(teacher, [mask], held_out, device=made.device)
        (taught,) = masked_logits(teacher, [mask], training, device=made.device)
        found.append(_layer_view(layer, saliency.scores, soft.cpu(), trial_of(taught), views, num_train, made))
    (taught,) = masked_logits(teacher, [None], training, device=made.device)
    labels, predicted = views.labels, views.teacher_logits.double().softmax(1)
    shares = estimate_shares(views, seed=made.seed)
    return {
        "trial": trial_of(taught),
        "held_out": head_trial(views, views.teacher_logits, num_train=num_train, loss=_mixture(made), seed=made.seed),
        "alpha": shares.alpha,
        "beta": shares.beta,
        "gamma": shares.gamma,
        "visible": visible_share(views.student_features, centred(views.teacher_logits), seed=made.seed),
        "surplus": visible_share(views.student_features, labels - predicted, seed=made.seed),
        "non_target_divergence": non_target_divergence(views.teacher_logits, views.student_logits, views.target),
        "complementarity": complementarity(views.teacher_logits, views.student_logits, views.target),
        "kernel_alignment": kernel_alignment(views.teacher_features, views.student_features),
        "mutual_neighbours": mutual_neighbours(views.teacher_features, views.student_features),
        "cosine_gap": cosine_gap(views.teacher_logits, views.student_logits),
        "layers": tuple(found),
    }


def _mixture(made: Seed) -> KDLoss:
    """The task's loss if it is a `KDLoss`; otherwise the default `KDLoss`, which weighs labels and teacher equally."""
    return made.protocol.loss if isinstance(made.protocol.loss, KDLoss) else KDLoss()


def _views(made: Seed) -> Views:
    """Outputs and features of both networks on the validation split."""
    teacher, student = (made.networks.pretrained(role).network for role in ("teacher", "student"))
    parts: dict[str, list[Tensor]] = {field.name: [] for field in dataclasses.fields(Views)}
    with placed(made.device, teacher, student), evaluating(teacher, student):
        for batch in PairLoader(_held_out_pairs(made), num_workers=made.recipe.num_workers):
            batch = to_device(batch, made.device)
            seen = {
                "teacher": student_features(teacher, None, batch.teacher_input),
                "student": student_features(student, made.task.student_layer, batch.student_input),
            }
            for role, (logits, features) in seen.items():
                parts[f"{role}_logits"].append(logits.cpu())
                parts[f"{role}_features"].append(features.cpu())
            parts["target"].append(batch.target.cpu())
    return Views(**{name: torch.cat(part) for name, part in parts.items()})


def _held_out_pairs(made: Seed) -> Any:
    """Validation pairs to read."""
    val = made.task.val
    return val if len(val) <= MOST else Subset(val, sampled_rows(len(val), MOST, made.seed))


def _sampled_rows(made: Seed) -> tuple[list[int], Tensor]:
    """Training pairs to read, labelled ones first, and how many pairs each of them stands for."""
    labelled, count = len(made.task.train), len(made.task.pairs)
    known, unknown = (sampled_rows(number, MOST, made.seed) for number in (labelled, count - labelled))
    each = [labelled / len(known)] * len(known) + [(count - labelled) / max(1, len(unknown))] * len(unknown)
    return [*known, *(labelled + row for row in unknown)], torch.tensor(each)


def _student_features(made: Seed, pairs: PairLoader) -> Tensor:
    """(N, F) features of the student that was trained on labels."""
    student = made.networks.pretrained("student").network
    inputs = (batch.student_input for batch in pairs)
    return finite(read_features(student, made.task.student_layer, inputs, made.device), "student")


def _layer_view(
    layer: str, scores: np.ndarray, soft: Tensor, trial: Measure, views: Views, num_train: int, made: Seed
) -> LayerView:
    share = slope(centred(soft), centred(views.teacher_logits))
    held_out = head_trial(views, soft, num_train=num_train, loss=_mixture(made), seed=made.seed)
    seen = np.clip(scores, 0, 1)
    note = "" if seen.any() else "the student's features predict none of its channels (or all are constant)"
    accuracy = accuracy_of(soft, views.target)
    return LayerView(layer, len(scores), float(seen.mean()), share, accuracy, trial, held_out, note)


def outcome_of(gain: Measure, scale: Scale) -> Outcome:
    """The verdict on a forecast gain: whether its 90 % interval lies above zero, or below what is worth a teacher."""
    if gain.low is None or gain.high is None:
        return "cannot tell"
    if gain.low > 0:
        return "likely to help"
    return "not likely to help" if gain.high < (WORTH if scale.percent else 0.0) else "cannot tell"


def gain_as_text(gain: Measure, scale: Scale) -> tuple[str, str]:
    """A gain with its unit, and the ends of its interval: "+4.1 points" and "+0.2 to +8.0"; empty where not known."""
    if gain.value is None:
        return "", ""
    digits = "+.1f" if scale.percent else "+.3g"
    unit = f" {scale.unit}" if scale.unit else ""
    interval = "" if gain.low is None else f"{gain.low:{digits}} to {gain.high:{digits}}"
    return f"{gain.value:{digits}}{unit}".replace("-", "\u2212"), interval.replace("-", "\u2212")


def in_words(gain: Measure, scale: Scale) -> str:
    """A gain with its interval in words: "+4.1 points (90 % interval +0.2 to +8.0)"."""
    value, interval = gain_as_text(gain, scale)
    more = f"90 % interval {interval}" if interval else gain.note
    return f"{value} ({more})" if value and more else value or gain.note


def _reasons(made: Seed, ahead: Forecast) -> list[str]:
    """What the forecast says, one sentence each."""
    scale, count = made.task.problem.metric.scale, len(made.task.pairs) - len(made.task.train)
    what = f"Expected gain in {scale.words} over the same training without a teacher"
    if not count:
        return [f"{what}: {in_words(ahead.gain, scale)}."]
    shift = []
    if ahead.shift.value is not None and ahead.shift.value > SHIFTED:
        shift = [
            f"The unlabelled pairs differ from the labelled ones: a regression tells them apart with an AUROC of "
            f"{ahead.shift.value:.2f}, so the forecast may be wrong."
        ]
    return [
        *shift,
        f"{what}, with the {count} unlabelled pairs: {in_words(ahead.gain, scale)}.",
        f"Without these pairs: {in_words(ahead.labelled_only, scale)}.",
    ]


def _remarks(found: Sequence[LayerView]) -> list[str]:
    return [f"Layer {view.layer}: {view.note}." for view in found if view.note]


def _mask_reasons(ahead: Forecast, scale: Scale) -> list[str]:
    """What a soft mask may add."""
    if ahead.masked.value is None:
        return []
    return [
        "What a soft mask adds cannot be told beforehand: in 78 real settings it changed this gain by "
        f"{in_words(ahead.masked, scale)}."
    ]
