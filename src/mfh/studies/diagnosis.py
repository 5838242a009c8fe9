"""A verdict on whether distillation will help, made before any student is distilled.

It needs only two networks trained on labels, which a study trains anyway. All fits (ridge regressions, in closed form)
are judged on validation pairs, which they were not fitted to.

The verdict rests on one criterion, the *trial of heads*. One linear head on the student's features is fitted to the
labels of the training pairs, another to the same labels and to what the teacher says of all training pairs, unlabelled
ones among them, as the distillation loss weighs both. If the second head agrees better with the labels of validation
pairs, the teacher adds information that the student's modality carries and that the labels alone do not teach. The
other criteria are reported beside it; docs/when-not.md says how well each one predicted measured gains.
"""

import dataclasses
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

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
from mfh.saliency.masks import masked_logits
from mfh.saliency.probe import student_features
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
    estimate_shares,
    head_trial,
    non_target_divergence,
    slope,
    training_trial,
    visible_share,
)
from mfh.studies.folder import Run
from mfh.studies.seed import Seed
from mfh.studies.settings import Settings
from mfh.studies.steps import open_seed, refuse_torchrun

if TYPE_CHECKING:
    from collections.abc import Callable

    from mfh.tasks.task import Task


#: What a diagnosis is within a run folder; it may be kept under another name.
_PLACE = "diagnosis"
Outcome = Literal["likely to help", "not likely to help", "cannot tell"]

#: Smallest trial of heads that counts, chosen on `htad` (three directions, three seeds): with labelled pairs alone,
#: which gained nothing, the largest trial was 0.018; with unlabelled pairs, which gained, the smallest was 0.033.
SMALLEST = 0.02


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
        accuracy: Accuracy of the softly masked teacher on the validation split.
        trial: Trial of heads on the training pairs for the arm `soft` at this layer.
        held_out: The same trial on validation pairs alone.
        note: What is wrong with the layer; empty if nothing is.
    """

    layer: str
    channels: int
    seen: float
    share: Measure
    accuracy: float
    trial: Measure
    held_out: Measure
    note: str = ""


@dataclass(frozen=True, repr=False)
class Diagnosis:
    """What `diagnose` found. Everything but the layers' saliencies is measured on the validation split.

    Args:
        task: Name of the task.
        seed: Random seed of data, networks and folds.
        verdict: The verdict: "likely to help", "not likely to help" or "cannot tell".
        arm: Arm that the verdict is about, "regular" or "soft": the one with the better trial.
        layer: Layer of that arm's mask; empty for "regular".
        reasons: Reasons for the verdict, one sentence each.
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
        teacher_accuracy: Accuracy of the teacher on the validation split.
        student_accuracy: Accuracy, on the validation split, of the student trained on labels.
        layers: One `LayerView` for each layer that was looked into.
        samples: Number of validation pairs read.
        num_train: Number of labelled training pairs.
        num_unlabelled: Number of training pairs without labels.
    """

    task: str
    seed: int
    verdict: Outcome
    arm: str
    layer: str
    reasons: tuple[str, ...]
    trial: Measure
    held_out: Measure
    alpha: Measure
    beta: Measure
    gamma: Measure
    visible: Measure
    surplus: Measure
    non_target_divergence: Measure
    complementarity: Measure
    teacher_accuracy: float
    student_accuracy: float
    layers: tuple[LayerView, ...]
    samples: int
    num_train: int
    num_unlabelled: int = 0

    def __repr__(self) -> str:
        layer = f" at layer {self.layer!r}" if self.layer else ""
        return (
            f"Diagnosis({self.task}, seed {self.seed}: {self.verdict}, by arm {self.arm}{layer}, {self.samples} pairs)"
        )

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
    """Predict whether distillation is likely to help, before any student is distilled.

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
    if task.problem.name != "classification":
        raise InputError(
            f"task {task.name!r} is a task of {task.problem.name.replace('_', ' ')}; a diagnosis needs "
            "classification with one class per sample"
        )
    if task.teacher is None:
        raise InputError(
            f"task {task.name!r} has no teacher network, only outputs on the training split, which say nothing about "
            "held-out pairs; a diagnosis needs the network"
        )
    layers = tuple(dict.fromkeys(layers)) or (task.layer,)
    if len(task.val) < FEWEST:  # before networks are trained
        raise InputError(
            f"task {task.name!r} has {len(task.val)} validation pairs; a diagnosis needs at least {FEWEST}"
        )
    for layer in layers:
        find_layer(networks.new("teacher"), layer)
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
    trial = trial_of(taught)
    verdict, arm, layer, reasons = _verdict(trial, found)
    labels, predicted = views.labels, views.teacher_logits.double().softmax(1)
    shares = estimate_shares(views, seed=made.seed)
    return Diagnosis(
        task=task.name,
        seed=made.seed,
        verdict=verdict,
        arm=arm,
        layer=layer,
        reasons=(*reasons, *_remarks(found)),
        trial=trial,
        held_out=head_trial(views, views.teacher_logits, num_train=num_train, loss=_mixture(made), seed=made.seed),
        alpha=shares.alpha,
        beta=shares.beta,
        gamma=shares.gamma,
        visible=visible_share(views.student_features, centred(views.teacher_logits), seed=made.seed),
        surplus=visible_share(views.student_features, labels - predicted, seed=made.seed),
        non_target_divergence=non_target_divergence(views.teacher_logits, views.student_logits, views.target),
        complementarity=complementarity(views.teacher_logits, views.student_logits, views.target),
        teacher_accuracy=accuracy_of(views.teacher_logits, views.target),
        student_accuracy=accuracy_of(views.student_logits, views.target),
        layers=tuple(found),
        samples=len(views.target),
        num_train=num_train,
        num_unlabelled=len(task.pairs) - num_train,
    )


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
    return val if len(val) <= MOST else Subset(val, _sample(len(val), made.seed))


def _sample(count: int, seed: int) -> list[int]:
    """Positions of at most `MOST` of so many samples, drawn at random and in order: data may be sorted by class."""
    if count <= MOST:
        return list(range(count))
    drawn = torch.randperm(count, generator=torch.Generator().manual_seed(seed))[:MOST]
    return sorted(drawn.tolist())


def _sampled_rows(made: Seed) -> tuple[list[int], Tensor]:
    """Training pairs to read, labelled ones first, and how many pairs each of them stands for."""
    labelled, count = len(made.task.train), len(made.task.pairs)
    known, unknown = _sample(labelled, made.seed), _sample(count - labelled, made.seed)
    each = [labelled / len(known)] * len(known) + [(count - labelled) / max(1, len(unknown))] * len(unknown)
    return [*known, *(labelled + row for row in unknown)], torch.tensor(each)


def _student_features(made: Seed, pairs: PairLoader) -> Tensor:
    """(N, F) features of the student that was trained on labels."""
    student, parts = made.networks.pretrained("student").network, []
    with placed(made.device, student), evaluating(student):
        for batch in pairs:
            inputs = to_device(batch.student_input, made.device)
            parts.append(student_features(student, made.task.student_layer, inputs)[1].cpu())
    return torch.cat(parts)


def _layer_view(
    layer: str, scores: np.ndarray, soft: Tensor, trial: Measure, views: Views, num_train: int, made: Seed
) -> LayerView:
    share = slope(centred(soft), centred(views.teacher_logits))
    held_out = head_trial(views, soft, num_train=num_train, loss=_mixture(made), seed=made.seed)
    seen = np.clip(scores, 0, 1)
    note = "" if seen.any() else "the student's features predict none of its channels (or all are constant)"
    accuracy = accuracy_of(soft, views.target)
    return LayerView(layer, len(scores), float(seen.mean()), share, accuracy, trial, held_out, note)


def _verdict(trial: Measure, found: Sequence[LayerView]) -> tuple[Outcome, str, str, list[str]]:
    arms = [("regular", "", trial), *(("soft", view.layer, view.trial) for view in found)]
    arm, layer, best = max(arms, key=lambda entry: entry[2].value or 0.0)
    outcome = outcome_of(best)
    reasons = [f"{name_of_arm(*entry[:2])}: the trial of heads {_in_words(entry[2])}." for entry in arms]
    return outcome, arm, layer, reasons


def outcome_of(trial: Measure) -> Outcome:
    """The verdict on one arm: the sign of its trial, if its 90 % interval excludes zero and a gain is large enough.

    A teacher that has memorised its training pairs may seem to add a little; see `SMALLEST`.
    """
    if trial.low is not None and trial.low > 0 and trial.value is not None and trial.value >= SMALLEST:
        return "likely to help"
    if trial.high is not None and trial.high < 0:
        return "not likely to help"
    return "cannot tell"


def name_of_arm(arm: str, layer: str) -> str:
    """An arm and its layer in words, for instance "soft at layer flatten"."""
    return f"{arm} at layer {layer}" if layer else arm


def _in_words(trial: Measure) -> str:
    assert trial.value is not None
    return {
        "likely to help": "gains from the teacher",
        "not likely to help": "loses by the teacher",
        "cannot tell": "shows no clear difference",
    }[outcome_of(trial)] + f" ({trial.value:+.3f}, {trial.low:+.3f} to {trial.high:+.3f})".replace("-", "\u2212")


def _remarks(found: Sequence[LayerView]) -> list[str]:
    return [f"Layer {view.layer}: {view.note}." for view in found if view.note]
