"""Scores, soft masks and students in worlds whose truth is known: what `mfh diagnose` and `soft` are judged by.

    python research/worlds/worlds.py runs/worlds
    python research/worlds/tables.py runs/worlds --report research/worlds/reports/worlds-YYYY-MM-DD.md

Three kinds of worlds. In all of them decisive features are general, teacher-only or student-only. With two classes the
label says whether their sum exceeds its middle; with more, every feature speaks for some classes and against others,
and the label is the class with the largest sum.

linear  Gaussian features seen under noise; linear softmax classifiers by the compiled solver of `mfh.gaussian`. The
        channels are the teacher's inputs.
nets    the same with small networks, all students of a world trained side by side. A decisive feature counts linearly
        or by its absolute value. The teacher's first layer looks at one input per channel, so each channel's truth is
        known; the rest of it is fully connected.
digits  the shipped world, through `mfh.studies.seed`, 500 training pairs and 12 epochs.

With `--processes N` or `--engine ray`, every world is a job of its own. Every world leaves one CSV of measurements, `world,kind,half,seed,what,name,value`, and one .npz of what a diagnosis may
look at, so that criteria can be computed again without training. A world that is there already is not run again.
The half "dev" is for choosing, the half "held-out" for reporting: its worlds were written down, and run, after all
choices were made.
"""

import argparse
import csv
import dataclasses
import time
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path

import numpy as np
import torch
from scipy.optimize import minimize_scalar
from sklearn.metrics import roc_auc_score
from torch import nn

import mfh
from mfh.files import atomic_write
from mfh.gaussian import Classifiers, fit, fit_jointly, initial_classifiers, input_saliency
from mfh.parallel.cluster import cluster_pool
from mfh.parallel.pool import Job, run_jobs, worker_pool
from mfh.saliency.probe import cross_fitted_r2, ridge_predictions
from mfh.saliency.scores import soft_weights
from mfh.studies.seed import matching_temperature

RATIO = 0.5
LOSSES = {"": (1.0, 1.0), "-kl": (0.0, 1.0), "-heavy": (1.0, 3.0)}  # label weight, teacher weight
CALIBRATED = {"regular", "soft", "soft-layers", "oracle"}


@dataclass(frozen=True)
class World:
    """One synthetic task.

    Args:
        kind: "linear", "nets" or "digits".
        general: decisive features both modalities carry.
        teacher_only: decisive features of the teacher.
        student_only: decisive features of the student.
        num_train: training pairs.
        noise: standard deviation of the noise on every feature, in each modality; features have 1.
        distractors: inputs of each modality that decide nothing.
        shape: how a feature counts, "linear" or "absolute".
        classes: how many.
        half: "dev" or "held-out".
    """

    kind: str
    general: int
    teacher_only: int
    student_only: int
    num_train: int
    noise: float = 0.0
    distractors: int = 10
    shape: str = "linear"
    classes: int = 2
    half: str = "dev"

    @property
    def name(self) -> str:
        counts = f"{self.general}-{self.teacher_only}-{self.student_only}"
        end = "" if self.classes == 2 else f"-k{self.classes}"
        return f"{self.kind}-{counts}-n{self.num_train}-s{self.noise:g}-d{self.distractors}-{self.shape}{end}"

    @property
    def venn(self) -> mfh.ModalityVenn:
        return mfh.ModalityVenn(self.general, self.teacher_only, self.student_only)

    def truth(self) -> np.ndarray:
        """Which of the teacher's inputs are modality-general and decisive."""
        return np.arange(self.general + self.teacher_only + self.distractors) < self.general

    def draw(self, count: int, generator: np.random.Generator) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """Teacher's inputs, student's inputs, labels."""
        features = generator.standard_normal((count, self.venn.total))
        general, theirs, ours = np.split(features, [self.general, self.general + self.teacher_only], axis=1)
        counted = features if self.shape == "linear" else np.abs(features) - np.sqrt(2 / np.pi)
        if self.classes == 2:
            target = (counted.sum(1) > 0).astype(np.int64)
        else:  # the same votes for all seeds of a world
            votes = np.random.default_rng(self.classes).standard_normal((self.venn.total, self.classes))
            target = (counted @ (votes / np.linalg.norm(votes, axis=1, keepdims=True))).argmax(1)

        def seen(*parts: np.ndarray) -> np.ndarray:
            carried = np.concatenate(parts, axis=1)
            carried = (carried + self.noise * generator.standard_normal(carried.shape)) / np.hypot(1, self.noise)
            return np.concatenate([carried, generator.standard_normal((count, self.distractors))], axis=1)

        return seen(general, theirs), seen(general, ours), target


def worlds() -> list[World]:
    """The grid, in a fixed order, both halves of it."""
    return [*_dev(), *_held_out()]


def _dev() -> list[World]:
    """What choices were made on."""
    counts = [(8, 0, 0), (6, 6, 0), (4, 12, 0), (6, 0, 6), (6, 6, 6), (3, 6, 9), (2, 10, 8), (10, 4, 2)]
    grid = []
    for num_train, noise in ((100, 0.0), (200, 0.5), (400, 0.0)):
        grid += [World("linear", *c, num_train, noise, distractors=25) for c in counts]
    small = [(3, 0, 0), (2, 2, 0), (1, 3, 0), (2, 0, 2), (2, 2, 2), (1, 2, 2), (4, 2, 0), (3, 1, 1)]
    for num_train, noise, shape, classes in (
        (300, 0.3, "absolute", 2), (200, 0.5, "linear", 2), (300, 0.3, "linear", 4)
    ):  # fmt: skip
        grid += [World("nets", *c, num_train, noise, 4, shape, classes) for c in small]
    grid += [World("digits", *c, 500, 1.0, distractors=1) for c in ((1, 1, 0), (1, 1, 1), (2, 1, 0), (1, 0, 1))]
    return grid


def _held_out() -> list[World]:
    """What figures are reported of: other counts, sizes and noise."""
    counts = [(10, 0, 0), (8, 4, 0), (5, 10, 0), (4, 0, 4), (5, 5, 5), (2, 6, 12), (3, 12, 3), (9, 3, 6)]
    grid = []
    for num_train, noise in ((80, 0.0), (150, 0.5), (300, 0.3)):
        grid += [World("linear", *c, num_train, noise, distractors=25) for c in counts]
    small = [(4, 0, 0), (3, 3, 0), (2, 4, 0), (3, 0, 1), (3, 2, 1), (1, 1, 2), (5, 3, 0), (2, 3, 1)]
    for num_train, noise, shape, classes in (
        (200, 0.2, "absolute", 2), (150, 0.4, "linear", 2), (400, 0.3, "linear", 4)
    ):  # fmt: skip
        grid += [World("nets", *c, num_train, noise, 4, shape, classes) for c in small]
    grid += [World("digits", *c, 500, 1.0, distractors=1) for c in ((1, 2, 0), (2, 2, 0), (2, 0, 1), (2, 1, 1))]
    return [dataclasses.replace(world, half="held-out") for world in grid]


# --- measurements -----------------------------------------------------------------------------------------------------


class Book:
    """Measurements and material of one world."""

    def __init__(self, world: World) -> None:
        self.world, self.rows, self.kept = world, [], {}

    def note(self, seed, what, name, value):
        w = self.world
        self.rows.append((w.name, w.kind, w.half, seed, what, name, f"{float(value):.6g}"))

    def keep(self, seed, **arrays):
        for name, array in arrays.items():
            self.kept[f"{seed}/{name}"] = np.asarray(array, dtype=np.float32)

    def close(self, folder: Path):
        np.savez(folder / f"{self.world.name}.npz", **self.kept)
        with atomic_write(folder / f"{self.world.name}.csv") as file:
            writer = csv.writer(file, lineterminator="\n")
            writer.writerow(("world", "kind", "half", "seed", "what", "name", "value"))
            writer.writerows(self.rows)


def smoothed(target, classes, entropy):
    """(n, K) logits of smoothed labels that have the given entropy, the label being the likeliest class."""
    low, high = 1e-6, 1 - 1 / classes
    for _ in range(60):
        e = (low + high) / 2
        at_e = -(1 - e) * np.log(1 - e) - e * np.log(e / (classes - 1))
        low, high = (e, high) if at_e < entropy else (low, e)
    logits = torch.full((len(target), classes), np.log(low / (classes - 1)), dtype=torch.float32)
    return logits.scatter_(1, torch.as_tensor(target)[:, None].long(), float(np.log(1 - low)))


def mean_entropy(logits):
    log_p = torch.as_tensor(logits).double().log_softmax(1)
    return float(-(log_p.exp() * log_p).sum(1).mean())


def two(margin):
    """(n, 2) logits of the margins (n,) of class 1 over class 0."""
    margin = torch.as_tensor(margin)
    return torch.stack([-margin, margin], 1) / 2


def calibration(logits, target):
    """The factor that makes the logits' probabilities fit the labels best (temperature scaling, Guo et al. 2017)."""
    logits, target = torch.as_tensor(logits).double(), torch.as_tensor(target).long()
    cost = lambda a: float(nn.functional.cross_entropy(np.exp(a) * logits, target))  # noqa: E731
    return float(np.exp(minimize_scalar(cost, bounds=(-4, 4), method="bounded").x))


def predicted(features, channels, seed):
    """Cross-fitted ridge predictions of channels (n, C) from the student's features."""
    features, channels = (torch.as_tensor(np.asarray(a), dtype=torch.float64) for a in (features, channels))
    order = torch.randperm(len(features), generator=torch.Generator().manual_seed(seed))
    found = torch.zeros_like(channels)
    for held_out in order.tensor_split(5):
        fitting = order[~torch.isin(order, held_out)]
        made = ridge_predictions(features[fitting], channels[fitting][:, :, None], features[held_out])
        found[held_out] = made[:, :, 0]
    return found.numpy()


def random_fourier(inputs, count=500, seed=0):
    """Features of an approximate Gaussian kernel (Rahimi & Recht 2007); its width is the median distance."""
    x = torch.as_tensor(np.asarray(inputs), dtype=torch.float64)
    x = (x - x.mean(0)) / x.std(0).clamp_min(1e-6)
    width = torch.pdist(x[:300]).median()
    generator = torch.Generator().manual_seed(seed)
    w = torch.randn(x.shape[1], count, generator=generator, dtype=torch.float64) / width
    return torch.cos(x @ w + 2 * torch.pi * torch.rand(count, generator=generator, dtype=torch.float64))


def r2(features, channels, seed):
    features, channels = (torch.as_tensor(np.asarray(a), dtype=torch.float64) for a in (features, channels))
    return cross_fitted_r2(features, channels[:, :, None], seed=seed)[0].numpy()


def residual_agreement(contributions, student_margin):
    """Agreement of what is left of a channel's contribution once the other channels have predicted it (ridge)."""
    u = contributions - contributions.mean(0)
    s = student_margin - student_margin.mean()
    scale = u.std(0) + 1e-12
    z = u / scale
    precision = np.linalg.inv(z.T @ z / len(z) + 0.1 * np.eye(z.shape[1]))
    residual = z @ precision / np.diag(precision)
    return (residual * s[:, None]).mean(0) * scale


def correlation(channels, logits):
    """Of every channel (n, C) with the student's logits (n, K): squared, summed over classes."""
    z, s = (np.asarray(a, dtype=float) - np.asarray(a).mean(0) for a in (channels, logits))
    return ((s.T @ z / len(z)) ** 2 / (s.var(0)[:, None] + 1e-12)).sum(0) / (z.var(0) + 1e-12)


def soft_masks(scores):
    """Soft masks to compare, from probe scores by name: (C,) weights in [0, 1]."""
    masks = {}
    for name in ("", "-rbf", "-layers", "-input"):
        if f"probe{name}" in scores:
            masks[f"soft{name}"] = soft_weights(scores[f"probe{name}"])
            if name != "-rbf":
                masks[f"soft{name}-plain"] = np.clip(scores[f"probe{name}"], 0, 1)
    return masks


# --- linear -----------------------------------------------------------------------------------------------------------


def run_linear(world: World, seeds: range, book: Book) -> None:
    """All seeds at once through the compiled solver."""
    data = {split: [] for split in ("train", "val", "test")}
    generators = [np.random.default_rng([seed, 7]) for seed in seeds]
    for split, count in (("train", world.num_train), ("val", 500), ("test", 2000)):
        parts = [world.draw(count, generator) for generator in generators]
        data[split] = [np.stack(part) for part in zip(*parts, strict=True)]
    xt, xs, y = data["train"]
    y = y.astype(float)
    first_t = [initial_classifiers(g, xt.shape[2]) for g in generators]
    first_s = [initial_classifiers(g, xs.shape[2]) for g in generators]
    init_t, init_s = (
        Classifiers(np.concatenate([c.weight for c in cs]), np.concatenate([c.bias for c in cs]))
        for cs in (first_t, first_s)
    )
    teacher, plain = fit(xt, y, init_t), fit(xs, y, init_s)
    aligned, aligned_student = fit_jointly(xt, xs, y, init_t, init_s)
    truth = world.truth()
    weights: list[dict[str, np.ndarray]] = []
    seen_of_channel = []
    pair = {}
    for i, seed in enumerate(seeds):
        scores = {}
        for name, (t, s) in {"joint": (aligned, aligned_student), "separate": (teacher, plain)}.items():
            logits = s.logits(xs)[i, 0]
            weight, bias = t.weight[i, 0], t.bias[i, 0]
            scores[f"distance-{name}"] = input_saliency(weight, bias, xt[i], logits)
            margin, beta = logits[:, 1] - logits[:, 0], weight[1] - weight[0]
            contribution = xt[i] * beta
            scores[f"agreement-{name}"] = (
                (contribution - contribution.mean(0)) * (margin - margin.mean())[:, None]
            ).mean(0)
            scores[f"residual-{name}"] = residual_agreement(contribution, margin)
        at_val, student_at_val = data["val"][0][i], plain.logits(data["val"][1])[i, 0]
        scores["correlation-held-out"] = correlation(at_val, student_at_val)
        covariance = np.cov(at_val.T, student_at_val @ [-1, 1])[-1, :-1]
        scores["agreement-held-out"] = (teacher.weight[i, 0, 1] - teacher.weight[i, 0, 0]) * covariance
        # The student's only features are its inputs: nothing in between to read.
        scores["probe"] = r2(xs[i], xt[i], seed)
        scores["probe-rbf"] = r2(random_fourier(xs[i]), xt[i], seed)
        power = np.abs(teacher.weight[i, 0, 1] - teacher.weight[i, 0, 0]) * xt[i].std(0)
        scores["probe-decisive"] = np.clip(scores["probe"], 0, 1) * power
        for name, value in scores.items():
            if truth.any() and not truth.all():
                book.note(seed, "auroc", name, roc_auc_score(truth, value))
        masks = {"regular": np.ones_like(power), **soft_masks(scores), "oracle": truth.astype(float)}
        masks["soft-shuffled"] = np.random.default_rng(seed).permutation(masks["soft"])
        seen_of_channel.append(predicted(xs[i], xt[i], seed))
        weights.append(masks)
        pair_masks = {"aligned": np.ones_like(power)}
        count = int(RATIO * len(truth))
        for name in ("distance-joint", "agreement-joint", "probe"):
            keep = np.ones(len(truth))
            keep[np.argsort(scores[name])[:count]] = 0
            pair_masks[f"general-{name}"] = keep
        random = np.ones(len(truth))
        random[np.random.default_rng(seed).permutation(len(truth))[:count]] = 0
        pair_masks["random"] = random
        pair[i] = pair_masks

    def margin(c, x, i, mask):
        beta, bias = c.weight[i, 0, 1] - c.weight[i, 0, 0], c.bias[i, 0, 1] - c.bias[i, 0, 0]
        mean = xt[i].mean(0)
        return mean @ beta + bias + ((x - mean) * mask) @ beta

    targets = {}
    for i, seed in enumerate(seeds):
        xt_val, _, y_val = (part[i] for part in data["val"])
        margins = {name: margin(teacher, xt[i], i, mask) for name, mask in weights[i].items()}
        for name in CALIBRATED & margins.keys():
            at_val = two(margin(teacher, xt_val, i, weights[i][name]))
            margins[f"{name}-calibrated"] = margins[name] * calibration(at_val, y_val)
        margins["projected"] = margin(teacher, seen_of_channel[i], i, 1.0)
        margins |= {name: margin(aligned, xt[i], i, mask) for name, mask in pair[i].items()}
        both = {n: two(margins[n]) for n in ("regular", "soft")}
        margins["tempered"] = margins["regular"] / matching_temperature(both["regular"], both["soft"])
        margins["smoothing"] = (smoothed(y[i], 2, mean_entropy(both["soft"])) @ torch.tensor([-1.0, 1.0])).numpy()
        for name, value in margins.items():
            targets.setdefault(name, []).append(1 / (1 + np.exp(-np.clip(value, -40, 40))))
        xt_val, xs_val, y_val = (part[i] for part in data["val"])
        book.keep(
            seed,
            target=y_val,
            teacher=two(margin(teacher, xt_val, i, weights[i]["regular"])),
            soft=two(margin(teacher, xt_val, i, weights[i]["soft"])),
            student=plain.logits(data["val"][1])[i, 0],
            teacher_features=xt_val,
            student_features=xs_val,
        )
    arms = list(targets)
    stacked = np.stack([np.stack(targets[arm]) for arm in arms], axis=1)
    for suffix, (label_weight, teacher_weight) in LOSSES.items():
        chosen = arms if not suffix else ["regular", "aligned", "soft"]
        part = stacked[:, [arms.index(arm) for arm in chosen]]
        students = fit(
            xs, y, init_s, teacher_probability=part, label_weight=label_weight, teacher_weight=teacher_weight,
            reduction="batchmean",
        )  # fmt: skip
        _note_accuracies(book, seeds, [arm + suffix for arm in chosen], students, data)
    _note_accuracies(book, seeds, ["no-kd"], plain, data)
    _note_accuracies(book, seeds, ["aligned-student"], aligned_student, data)
    for i, seed in enumerate(seeds):
        right = (margin(teacher, data["test"][0][i], i, 1.0) > 0) == data["test"][2][i]
        book.note(seed, "teacher", "regular", right.mean())


def _note_accuracies(book, seeds, arms, students, data):
    for split in ("val", "test"):
        accuracy = students.accuracy(data[split][1], data[split][2].astype(float)) / 100
        for i, seed in enumerate(seeds):
            for a, arm in enumerate(arms):
                book.note(seed, split, arm, accuracy[i, a])


# --- nets -------------------------------------------------------------------------------------------------------------

WIDTH, UNITS, STEPS, RATE, EVERY = 24, 4, 200, 0.02, 10


class Batch:
    """Two-hidden-layer networks for S seeds x A arms, trained side by side by full-batch Adam.

    Args:
        sizes: inputs, first hidden, second hidden, classes.
        generators: one per seed; all arms of a seed start from the same weights.
        arms: A.
        mask: (inputs, first hidden) of zeros and ones on the first layer's weights.
    """

    def __init__(self, sizes, generators, arms, mask=None):
        self.parameters = []
        for place, (before, after) in enumerate(pairwise(sizes)):
            fan = int(mask.sum(0)[0]) if mask is not None and place == 0 else before
            for shape in ((before, after), (1, after)):
                drawn = [torch.as_tensor(g.uniform(-1, 1, shape) * fan**-0.5, dtype=torch.float32) for g in generators]
                self.parameters.append(torch.stack(drawn)[:, None].repeat(1, arms, 1, 1))
        self.mask = mask

    def hidden(self, x):
        w1, b1, w2, b2, _, _ = self.parameters
        w1 = w1 if self.mask is None else w1 * self.mask
        first = (x[:, None] @ w1 + b1).relu()
        return first, (first @ w2 + b2).relu()

    def logits(self, x):
        """(S, A, n, K)"""
        return self.hidden(x)[1] @ self.parameters[4] + self.parameters[5]

    def module(self, seed_index):
        """The first arm's network as an ordinary one."""
        w1, b1, w2, b2, w3, b3 = (p[seed_index, 0].detach() for p in self.parameters)
        w1 = w1 if self.mask is None else w1 * self.mask
        layers = []
        for weight, bias in ((w1, b1), (w2, b2), (w3, b3)):
            linear = nn.Linear(*weight.shape)
            linear.weight.data, linear.bias.data = weight.T.contiguous(), bias[0]
            layers += [linear, nn.ReLU()]
        return nn.Sequential(*layers[:-1])


def train(batches, loss, val, steps=STEPS, last=False):
    """Minimise loss(batches); keep for each student the step of best validation accuracy, then lowest loss.

    val: x (S, n, d) and y (S, n) of the last of `batches`, whose step is chosen; all batches keep that one.
    """
    parameters = [p.requires_grad_() for b in batches for p in b.parameters]
    optimizer = torch.optim.Adam(parameters, lr=RATE)
    best, kept = None, None
    for step in range(1, steps + 1):
        optimizer.zero_grad()
        loss().backward()
        optimizer.step()
        if step % EVERY and not last:
            continue
        with torch.no_grad():
            logits = batches[-1].logits(val[0])
            cost = cross_entropy(logits, one_hot(val[1], logits))
            rank = accuracy(logits, val[1]) - 1e-4 * cost.clamp(max=50)
            better = torch.ones_like(rank, dtype=torch.bool) if best is None or last else rank > best
            best = rank if best is None else torch.where(better, rank, best)
            now = [p.detach().clone() for p in parameters]
            kept = now if kept is None else [
                torch.where(better[:, :, None, None], a, b) for a, b in zip(now, kept, strict=True)
            ]  # fmt: skip
    for parameter, value in zip(parameters, kept, strict=True):
        parameter.requires_grad_(False).copy_(value)


def one_hot(target, logits):
    """(S, 1, n, K) of classes (S, n)."""
    return nn.functional.one_hot(target, logits.shape[-1]).float()[:, None]


def cross_entropy(logits, probability):
    """(S, A)"""
    return -(probability * logits.log_softmax(-1)).sum(-1).mean(-1)


def accuracy(logits, target):
    """(S, A)"""
    return (logits.argmax(-1) == target[:, None]).float().mean(-1)


def run_nets(world: World, seeds: range, book: Book) -> None:
    """All seeds and arms side by side."""
    generators = [np.random.default_rng([seed, 11]) for seed in seeds]
    data = {}
    for split, count in (("train", world.num_train), ("val", 500), ("test", 2000)):
        parts = zip(*[world.draw(count, g) for g in generators], strict=True)
        x, z, target = (torch.as_tensor(np.stack(part)) for part in parts)
        data[split] = x.float(), z.float(), target
    (xt, xs, y), (vt, vs, vy), (tt, ts, ty) = data["train"], data["val"], data["test"]
    labels = nn.functional.one_hot(y, world.classes).float()[:, None]
    inputs = xt.shape[2]
    block = torch.eye(inputs).repeat_interleave(UNITS, dim=1)
    truth = np.repeat(world.truth(), UNITS)

    def fresh(role, arms):
        """From the same initial weights whenever asked."""
        if role == "teacher":
            again = [np.random.default_rng([seed, 12]) for seed in seeds]
            return Batch((inputs, inputs * UNITS, WIDTH, world.classes), again, arms, block)
        again = [np.random.default_rng([seed, 13]) for seed in seeds]
        return Batch((xs.shape[2], WIDTH, WIDTH, world.classes), again, arms)

    teacher, plain = fresh("teacher", 1), fresh("student", 1)
    train([teacher], lambda: cross_entropy(teacher.logits(xt), labels).sum(), (vt, vy))
    train([plain], lambda: cross_entropy(plain.logits(xs), labels).sum(), (vs, vy))
    aligned, aligned_student = fresh("teacher", 1), fresh("student", 1)

    def joint():
        a, b = aligned.logits(xt), aligned_student.logits(xs)
        return (cross_entropy(a, labels) + cross_entropy(b, labels) + (a - b).square().mean((-1, -2))).sum()

    train([aligned, aligned_student], joint, (vs, vy), last=True)

    taught: dict[str, list[torch.Tensor]] = {}
    # Activations (n, width) by seed: every network on its own seed's data.
    (firsts, lates), (h1s, h2s) = teacher.hidden(xt), plain.hidden(xs)
    firsts_a, firsts_v, h2s_v = aligned.hidden(xt)[0], teacher.hidden(vt)[0], plain.hidden(vs)[1]
    for i, seed in enumerate(seeds):
        first, late, h1, h2 = (part[i, 0] for part in (firsts, lates, h1s, h2s))
        first_a, first_v = firsts_a[i, 0], firsts_v[i, 0]
        pairs = [(xt[i], xs[i], y[i])]
        scores = {}
        for name, (t, s) in {"joint": (aligned, aligned_student), "separate": (teacher, plain)}.items():
            for score in ("distance", "agreement"):
                made = mfh.channel_saliency(
                    t.module(i), s.module(i), pairs, layer="1", score=score, permutations=5, seed=seed
                )
                scores[f"{score}-{name}"] = made.scores
        channels = first.numpy()
        scores["probe"] = r2(h2, channels, seed)
        scores["probe-layers"] = r2(torch.cat([xs[i], h1, h2], 1), channels, seed)
        scores["probe-input"] = r2(random_fourier(xs[i]), channels, seed)
        scores["probe-rbf"] = r2(random_fourier(h2), channels, seed)
        scores["probe-aligned"] = r2(aligned_student.hidden(xs)[1][i, 0], first_a.numpy(), seed)
        scores["correlation-held-out"] = correlation(first_v, plain.logits(vs)[i, 0])
        grouped = np.clip(scores["probe"], 0, 1).reshape(-1, UNITS).mean(1).repeat(UNITS)
        scores["probe-grouped"] = grouped
        power = teacher.parameters[2][i, 0].norm(dim=1).numpy() * channels.std(0)
        scores["probe-decisive"] = np.clip(scores["probe"], 0, 1) * power
        for name, value in scores.items():
            if truth.any() and not truth.all():
                book.note(seed, "auroc", name, roc_auc_score(truth, value))
        masks = {"regular": np.ones(len(truth)), **soft_masks(scores)}
        masks |= {"soft-grouped": soft_weights(grouped), "oracle": truth.astype(float)}
        masks["soft-shuffled"] = np.random.default_rng(seed).permutation(masks["soft"])
        count = int(RATIO * len(truth))
        pair_masks = {"aligned": np.ones(len(truth))}
        for name in ("distance-joint", "probe-aligned"):
            keep = np.ones(len(truth))
            keep[np.argsort(scores[name])[:count]] = 0
            pair_masks[f"general-{name}"] = keep
        random = np.ones(len(truth))
        random[np.random.default_rng(seed).permutation(len(truth))[:count]] = 0
        pair_masks["random"] = random

        def masked(network, z, mask, mean, i=i):
            z = mean + torch.as_tensor(mask, dtype=torch.float32) * (z - mean)
            _, _, w2, b2, w3, b3 = (p[i, 0] for p in network.parameters)
            return (z @ w2 + b2).relu() @ w3 + b3

        made = {name: masked(teacher, first, mask, first.mean(0)) for name, mask in masks.items()}
        made |= {name: masked(aligned, first_a, mask, first_a.mean(0)) for name, mask in pair_masks.items()}
        # The same at a later layer, where features are summed already.
        late_mask = torch.as_tensor(soft_weights(r2(h2, late.numpy(), seed)), dtype=torch.float32)
        late = late.mean(0) + late_mask * (late - late.mean(0))
        made["soft-late"] = late @ teacher.parameters[4][i, 0] + teacher.parameters[5][i, 0]
        made["tempered"] = made["regular"] / matching_temperature(made["regular"], made["soft"])
        made["smoothing"] = smoothed(y[i], world.classes, mean_entropy(made["soft"]))
        at_val = {name: masked(teacher, first_v, masks[name], first.mean(0)) for name in CALIBRATED & masks.keys()}
        made |= {f"{name}-calibrated": made[name] * calibration(at_val[name], vy[i]) for name in at_val}
        seen = torch.as_tensor(predicted(h2, channels, seed), dtype=torch.float32)
        made["projected"] = masked(teacher, seen, np.ones(len(truth)), first.mean(0))
        for name, value in made.items():
            taught.setdefault(name, []).append(value)
        book.keep(
            seed,
            target=vy[i],
            teacher=at_val["regular"],
            soft=at_val["soft"],
            student=plain.logits(vs)[i, 0],
            teacher_features=first_v,
            student_features=h2s_v[i, 0],
        )
    losses = [(arm, arm, *LOSSES[""]) for arm in taught]
    losses += [(arm + s, arm, *LOSSES[s]) for s in ("-kl", "-heavy") for arm in ("regular", "soft")]
    probability = torch.stack([torch.stack(taught[arm]).softmax(-1) for _, arm, _, _ in losses], dim=1)
    label, weight = (torch.tensor([loss[k] for loss in losses]) for k in (2, 3))
    students = fresh("student", len(losses))

    def distilling():
        logits = students.logits(xs)
        return (label * cross_entropy(logits, labels) + weight * cross_entropy(logits, probability)).sum()

    train([students], distilling, (vs, vy))
    every = [([name for name, *_ in losses], students), (["no-kd"], plain), (["aligned-student"], aligned_student)]
    with torch.no_grad():
        for names, network in every:
            for split, x, target in (("val", vs, vy), ("test", ts, ty)):
                right = accuracy(network.logits(x), target)
                for i, seed in enumerate(seeds):
                    for a, arm in enumerate(names):
                        book.note(seed, split, arm, right[i, a])
        right = accuracy(teacher.logits(tt), ty)
    for i, seed in enumerate(seeds):
        book.note(seed, "teacher", "regular", right[i, 0])


# --- digits -----------------------------------------------------------------------------------------------------------


def run_digits(world: World, seeds: range, book: Book) -> None:
    """One student after the other, through the library."""
    from mfh.data.epochs import PairLoader
    from mfh.saliency.masks import masked_logits
    from mfh.studies.grid import Cell
    from mfh.studies.seed import Seed
    from mfh.studies.settings import Settings
    from mfh.tasks.digits import task as digits
    from mfh.training.fitting import distill, evaluate

    for seed in seeds:
        task = digits(
            seed, general=world.general, teacher_only=world.teacher_only, student_only=world.student_only,
            student_distractors=world.distractors, num_train=world.num_train, num_val=500, num_test=2000,
        )  # fmt: skip
        bench = Seed(task, seed, Settings.of(epochs=12, device="cpu"))
        truth, layer = task.truth, task.layer
        teacher, plain = (bench.networks.pretrained(role).network for role in ("teacher", "student"))
        loader = PairLoader(task.train)
        scores = {f"{score}-joint": bench.saliency(score).scores for score in ("distance", "agreement")}
        for score in ("distance", "agreement"):
            made = mfh.channel_saliency(teacher, plain, loader, layer=layer, score=score, permutations=2, seed=seed)
            scores[f"{score}-separate"] = made.scores
        probe = bench.saliency("probe")
        scores["probe"] = probe.scores

        def layers(network, x, names):
            seen, handles = {}, []
            for name in names:
                module = network.get_submodule(name)
                handles.append(module.register_forward_hook(lambda _m, _i, out, name=name: seen.update({name: out})))
            with torch.no_grad():
                logits = network.eval()(x)
            for handle in handles:
                handle.remove()
            return {**{name: seen[name].flatten(1).clone() for name in names}, "logits": logits}

        _, _, y = task.train.tensors
        vt, vs, vy = task.val.tensors
        at_val = {"teacher": layers(teacher, vt, (layer,)), "student": layers(plain, vs, ("flatten",))}
        scores["correlation-held-out"] = correlation(at_val["teacher"][layer], at_val["student"]["logits"])
        for name, value in scores.items():
            if truth.any() and not truth.all():
                book.note(seed, "auroc", name, roc_auc_score(truth, value))
        masks = {"regular": np.ones(len(truth)), **soft_masks(scores), "oracle": truth.astype(float)}
        masks["soft-shuffled"] = np.random.default_rng(seed).permutation(masks["soft"])
        base = probe.mask("soft")
        wanted = [dataclasses.replace(base, weights=weights) for weights in masks.values()]
        outputs = dict(zip(masks, masked_logits(teacher, wanted, loader), strict=True))
        val_logits = dict(zip(masks, masked_logits(teacher, wanted, PairLoader(task.val)), strict=True))
        outputs["soft-calibrated"] = outputs["soft"] * calibration(val_logits["soft"], vy)
        outputs["tempered"] = outputs["regular"] / matching_temperature(outputs["regular"], outputs["soft"])
        outputs["smoothing"] = smoothed(y, 2, mean_entropy(outputs["soft"]))
        for cell in (Cell("aligned"), Cell("general", "distance", RATIO, layer)):
            mask = bench.mask(cell)
            name = cell.arm if cell.arm == "aligned" else "general-distance-joint"
            (outputs[name],) = masked_logits(bench.networks.aligned("teacher").frozen, [mask], loader)
        book.keep(
            seed,
            target=vy,
            teacher=val_logits["regular"],
            soft=val_logits["soft"],
            student=at_val["student"]["logits"],
            teacher_features=at_val["teacher"][layer],
            student_features=at_val["student"]["flatten"],
        )
        students = {"no-kd": plain, "aligned-student": bench.networks.aligned_student().network}
        jobs = [(name, name, LOSSES[""]) for name in outputs]
        jobs += [(name + s, name, LOSSES[s]) for name in ("regular", "soft") for s in ("-kl", "-heavy")]
        for name, source, (label_weight, teacher_weight) in jobs:
            loss = mfh.KDLoss(label_weight=label_weight, teacher_weight=teacher_weight)
            students[name] = distill(
                None, bench.networks.new("student"), task.train, task.val, teacher_logits=outputs[source], loss=loss,
                recipe=bench.recipe, seed=seed, device="cpu",
            ).student  # fmt: skip
        for name, student in students.items():
            book.note(seed, "val", name, evaluate(student, task.val, "student"))
            book.note(seed, "test", name, evaluate(student, task.test, "student"))
        book.note(seed, "teacher", "regular", evaluate(teacher, task.test, "teacher"))


RUN = {"linear": run_linear, "nets": run_nets, "digits": run_digits}


def measured(world, num_seeds):
    """In a worker: the measurements and the material of a world, and the seconds they took."""
    torch.set_num_threads(1)
    start, book = time.perf_counter(), Book(world)
    RUN[world.kind](world, range(num_seeds), book)
    return book.rows, book.kept, time.perf_counter() - start


def main():
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("out", type=Path)
    parser.add_argument("--kinds", nargs="+", default=list(RUN), choices=list(RUN))
    parser.add_argument("--halves", nargs="+", default=["dev", "held-out"], choices=["dev", "held-out"])
    parser.add_argument("--seeds", type=int, default=20)
    parser.add_argument("--limit", type=int, help="only so many worlds of each kind")
    parser.add_argument("--processes", type=int, default=1, help="worlds that are measured at once on this machine")
    parser.add_argument("--engine", choices=("processes", "ray"), default="processes")
    parser.add_argument("--address", help="HOST:PORT of the Ray cluster's head")
    options = parser.parse_args()
    options.out.mkdir(parents=True, exist_ok=True)
    chosen = [
        world
        for kind in options.kinds
        for world in [w for w in worlds() if w.kind == kind and w.half in options.halves][: options.limit]
        if not (options.out / f"{world.name}.csv").exists()
    ]

    def keep(job, found):
        book = Book(job.key)
        book.rows, book.kept, took = found
        book.close(options.out)
        print(f"{job.key.name}: {took:.0f} s", flush=True)

    workers = cluster_pool(options.address) if options.engine == "ray" else worker_pool(options.processes)
    with workers as pool:
        run_jobs(pool, [Job(world, measured, (world, options.seeds)) for world in chosen], keep)


if __name__ == "__main__":
    main()
