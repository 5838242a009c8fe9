"""Everything one seed of one task needs, made once: teachers, students, saliencies, masks, measurements.

The steps of the command line and the cells of a study go through here, so they share what they make. With a folder,
what is made is kept there and found again.
"""

import dataclasses
import json
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
from torch import Tensor, nn

from mfh import files
from mfh.arms import Cell
from mfh.errors import InputError
from mfh.losses import KDLoss
from mfh.masking import ChannelMask, masked_logits
from mfh.pairs import PairLoader
from mfh.permutation import Permutations
from mfh.saliency import ChannelSaliency, Score, channel_saliency
from mfh.task import Task
from mfh.training import Recipe, align, distill, evaluate, pretrain

Role = Literal["teacher", "student"]
Row = dict[str, Any]


@dataclass(frozen=True)
class Settings:
    """What the user may change about a task.

    Args:
        epochs: instead of the recipe's.
        batch_size: instead of the recipe's.
        layer: instead of the task's.
        device: where to run; default: a GPU if there is one.
        permutations: for saliencies, see `channel_saliency`.
        loss: of distillation.
        teacher_checkpoint: weights of a pretrained teacher, instead of training one.
        student_checkpoint: weights of a student trained on labels, instead of training one.
        progress: show progress bars.
    """

    epochs: int | None = None
    batch_size: int | None = None
    layer: str | None = None
    device: str | None = None
    permutations: Permutations = "auto"
    loss: KDLoss = field(default_factory=KDLoss)
    teacher_checkpoint: str | None = None
    student_checkpoint: str | None = None
    progress: bool = False

    def facts(self) -> dict[str, Any]:
        """What decides the results, as JSON can hold it."""
        loss = {f.name: getattr(self.loss, f.name) for f in dataclasses.fields(self.loss) if f.name != "label_loss"}
        return {
            "epochs": self.epochs,
            "batch_size": self.batch_size,
            "layer": self.layer,
            "permutations": self.permutations,
            "loss": loss,
            "teacher_checkpoint": self.teacher_checkpoint,
            "student_checkpoint": self.student_checkpoint,
        }


class Workbench:
    """One seed of one task.

    Args:
        task: as drawn for this seed.
        seed: of initial weights, order of data, permutations and random masks; the same for all arms, so that they
            can be compared in pairs.
        settings: what differs from the task's own.
        folder: where to keep what is made; None keeps it in memory.
    """

    def __init__(self, task: Task, seed: int, settings: Settings, folder: Path | None = None) -> None:
        changes = {n: v for n in ("epochs", "batch_size") if (v := getattr(settings, n)) is not None}
        self.task, self.seed, self.settings, self.folder = task, seed, settings, folder
        self.recipe: Recipe = dataclasses.replace(task.recipe, **changes)
        self.layer = settings.layer or task.layer
        self._made: dict[str, Any] = {}

    # --- networks -------------------------------------------------------------------------------------------------

    def new(self, role: Role) -> nn.Module:
        """A fresh network with this seed's initial weights."""
        factory = self.task.teacher if role == "teacher" else self.task.student
        if factory is None:
            raise InputError(
                f"task {self.task.name!r} has no teacher network, only its outputs; this needs the network"
            )
        with torch.random.fork_rng():
            torch.manual_seed(self.seed)
            return factory()

    def pretrained(self, role: Role) -> nn.Module:
        """The network of this role trained on labels alone; for the student, this is the arm no-kd."""
        checkpoint = self.settings.teacher_checkpoint or self.task.teacher_checkpoint
        if role == "student":
            checkpoint = self.settings.student_checkpoint
        if checkpoint is not None:
            given: nn.Module = self._once(f"given-{role}", lambda: load_weights(self.new(role), checkpoint))
            return given
        return self._networks([role], self._pretrain)[0]

    def _pretrain(self, networks: list[nn.Module], names: list[str], resume: Path | None) -> dict[str, Any]:
        role: Role = "teacher" if names[0] == "teacher" else "student"
        fit = pretrain(networks[0], modality=role, checkpoint=resume, **self._training())
        return {"best_epoch": fit.best_epoch, "history": fit.history}

    def aligned(self, role: Role) -> nn.Module:
        """The network of this role from the joint training (Algorithm 1, step 1)."""
        both = self._networks(["aligned-teacher", "aligned-student"], self._align)
        return both[0] if role == "teacher" else both[1]

    def _align(self, networks: list[nn.Module], _names: list[str], resume: Path | None) -> dict[str, Any]:
        pair = align(*networks, checkpoint=resume, **self._training())
        return {"best_epoch": self.recipe.epochs - 1, "history": pair.history}

    def teacher(self, cell: Cell) -> nn.Module:
        """The unmasked teacher of an arm."""
        return self.aligned("teacher") if cell.teacher == "aligned" else self.pretrained("teacher")

    def _training(self) -> dict[str, Any]:
        return {
            "train": self.task.train,
            "val": self.task.val,
            "recipe": self.recipe,
            "seed": self.seed,
            "device": self.settings.device,
            "progress": self.settings.progress,
        }

    def _networks(
        self, names: list[str], train: Callable[[list[nn.Module], list[str], Path | None], dict[str, Any]]
    ) -> list[nn.Module]:
        def make() -> list[nn.Module]:
            networks = [self.new("teacher" if name.endswith("teacher") else "student") for name in names]
            paths = [self._path(f"{name}.safetensors") for name in names]
            if all(path is not None and path.exists() for path in paths):
                for network, path in zip(networks, paths, strict=True):
                    assert path is not None
                    weights, facts = files.load_tensors(path, "network")
                    self._check_made_with(path, facts["made_with"])
                    network.load_state_dict(weights)
                    self._made[f"{path.stem} facts"] = facts
                return networks
            facts = {"made_with": self._made_with()} | train(networks, names, self._path(f"{names[0]}.ckpt"))
            for name, network, path in zip(names, networks, paths, strict=True):
                self._made[f"{name} facts"] = facts
                if path is not None:
                    files.save_tensors(path, "network", network.state_dict(), facts)
            return networks

        return self._once("+".join(names), make)  # type: ignore[no-any-return]

    def facts(self, name: str) -> dict[str, Any]:
        """best_epoch and history of a network made here, by its file's name."""
        return dict(self._made[f"{name} facts"])

    # --- saliency and masks ---------------------------------------------------------------------------------------

    def saliency(self, score: Score) -> ChannelSaliency:
        """Scores on the training split: of the aligned pair, or for "probe" of the networks trained on labels."""

        def make() -> ChannelSaliency:
            path = self._path(f"saliency-{score}.safetensors")
            base = self.pretrained if score == "probe" else self.aligned
            if path is not None and path.exists():
                saliency = ChannelSaliency.load(path)
                if saliency.layer != self.layer:
                    raise InputError(
                        f"{path} was made for layer {saliency.layer!r}, now it is {self.layer!r}: use another --out"
                    )
                return saliency
            saliency = channel_saliency(
                base("teacher"),
                base("student"),
                PairLoader(self.task.train, num_workers=self.recipe.num_workers),
                layer=self.layer,
                channel_dim=self.task.channel_dim,
                student_layer=self.task.student_layer,
                score=score,
                permutations="auto" if score == "probe" else self.settings.permutations,
                seed=self.seed,
                device=self.settings.device,
                progress=self.settings.progress,
            )
            if path is not None:
                saliency.save(path)
                if self.task.truth is not None and self.layer == self.task.layer:
                    truth = {"general": np.asarray(self.task.truth).tolist()}
                    files.write_json(path.parent / "truth.json", truth)
            return saliency

        return self._once(f"saliency {score}", make)  # type: ignore[no-any-return]

    def mask(self, cell: Cell) -> ChannelMask | None:
        """The mask of an arm; None for arms without one."""
        if cell.arm in ("general", "specific", "random"):
            score: Any = cell.score or "distance"
            kind: Any = cell.arm
            return self.saliency(score).mask(kind, cell.ratio, seed=self.seed)
        if cell.arm in ("soft", "soft-shuffled", "tempered"):
            mask = self.saliency("probe").mask("soft")
            if cell.arm == "soft-shuffled":
                order = np.random.default_rng(self.seed).permutation(len(mask.weights))
                mask = dataclasses.replace(mask, weights=mask.weights[order], kind="soft-shuffled")
            return mask
        return None

    def auroc(self, score: Score) -> float | None:
        """Area under the ROC curve of a score against the task's truth; None where that is unknown or one-sided."""
        truth = self.task.truth
        if truth is None or self.layer != self.task.layer or truth.all() or not truth.any():
            return None
        from sklearn.metrics import roc_auc_score

        return float(roc_auc_score(truth, self.saliency(score).scores))

    # --- measurements ---------------------------------------------------------------------------------------------

    def measure(self, cells: Sequence[Cell], *, splits: Sequence[str] = ("val", "test")) -> Iterator[list[Row]]:
        """Train and measure one student after the other; yields the rows of one cell at a time.

        All teachers' outputs are computed first: one trunk pass per teacher and split serves all masks.
        """
        taught = [cell for cell in cells if cell.teacher is not None]
        outputs = {split: self._outputs(taught, split) for split in ("train", *splits)}
        for cell in cells:
            if cell.arm == "no-kd":
                student, best_epoch = self.pretrained("student"), self._made.get("student facts", {}).get("best_epoch")
            elif cell.arm == "aligned-student":
                student, best_epoch = self.aligned("student"), self.recipe.epochs - 1
            else:
                student, best_epoch = self.student(cell, outputs["train"][cell])
            rows = [self._row(cell, "val", "best_epoch", best_epoch)] if best_epoch is not None else []
            for split in splits:
                dataset = getattr(self.task, split)
                rows.append(self._row(cell, split, "accuracy", evaluate(student, dataset, "student")))
                if cell in outputs[split]:
                    right = outputs[split][cell].argmax(1) == _targets(dataset)
                    rows.append(self._row(cell, split, "teacher_accuracy", float(right.double().mean())))
            yield rows

    def score_rows(self, scores: Iterable[Score]) -> list[Row]:
        """AUROC of every score against the truth, where it is known."""
        rows = []
        for score in scores:
            value = self.auroc(score)
            if value is not None:
                rows.append(self._row(Cell("", score), "train", "auroc", value))
        return rows

    def student(self, cell: Cell, teacher_logits: Tensor | None = None) -> tuple[nn.Module, int]:
        """A student distilled as the arm says, and its best epoch.

        Args:
            cell: with a teacher.
            teacher_logits: of the arm's masked teacher on the training split, if known.
        """
        if teacher_logits is None:
            teacher_logits = self._outputs([cell], "train")[cell]
        student = self.new("student")
        fit = distill(None, student, loss=self.settings.loss, teacher_logits=teacher_logits, **self._training())
        return student, fit.best_epoch

    def _outputs(self, cells: Sequence[Cell], split: str) -> dict[Cell, Tensor]:
        """Logits of every arm's teacher on one split."""
        known = self.task.teacher_logits
        if self.task.teacher is None:
            masked = [cell for cell in cells if cell.arm != "regular"]
            if masked:
                raise InputError(
                    f"arm {masked[0].arm!r} needs the teacher network, but task {self.task.name!r} has only its "
                    "outputs; choose from no-kd and regular"
                )
            assert known is not None
            return dict.fromkeys(cells, known) if split == "train" else {}
        loader = PairLoader(getattr(self.task, split), num_workers=self.recipe.num_workers)
        outputs: dict[Cell, Tensor] = {}
        for base in ("pretrained", "aligned"):
            group = [cell for cell in cells if cell.teacher == base]
            if not group:
                continue
            masks = [self.mask(cell) for cell in group]
            wanted = [None, *masks]
            plain, *rest = masked_logits(self.teacher(group[0]), wanted, loader, device=self.settings.device)
            for cell, logits in zip(group, rest, strict=True):
                outputs[cell] = plain / matching_temperature(plain, logits) if cell.arm == "tempered" else logits
        return outputs

    def _row(self, cell: Cell, split: str, metric: str, value: float) -> Row:
        layer = self.layer if cell.score or cell.ratio is not None else ""
        ratio = "" if cell.ratio is None else cell.ratio
        return {
            "arm": cell.arm,
            "score": cell.score,
            "layer": layer,
            "ratio": ratio,
            "seed": self.seed,
            "split": split,
            "metric": metric,
            "value": value,
        }

    # --- keeping --------------------------------------------------------------------------------------------------

    def _once(self, name: str, make: Callable[[], Any]) -> Any:
        if name not in self._made:
            self._made[name] = make()
        return self._made[name]

    def _path(self, name: str) -> Path | None:
        return None if self.folder is None else self.folder / name

    def _made_with(self) -> dict[str, Any]:
        facts = {"task": self.task.name, "seed": self.seed}
        return facts | {"epochs": self.recipe.epochs, "batch_size": self.recipe.batch_size}

    def _check_made_with(self, path: Path, made_with: dict[str, Any]) -> None:
        for name, now in self._made_with().items():
            if made_with.get(name) != now:
                raise InputError(
                    f"{path} was made with {name} {json.dumps(made_with.get(name))}, now it is {json.dumps(now)}: "
                    "use another --out, or the same options"
                )


def matching_temperature(logits: Tensor, softer: Tensor) -> float:
    """The temperature at which `logits` have the mean entropy of `softer`, by bisection.

    Args:
        logits: (N, K) to be tempered.
        softer: (N, K) whose entropy is matched.
    """

    def entropy(values: Tensor) -> float:
        log_p = values.double().log_softmax(1)
        return float(-(log_p.exp() * log_p).sum(1).mean())

    wanted, low, high = entropy(softer), -12.0, 12.0
    for _ in range(60):
        middle = (low + high) / 2
        low, high = (middle, high) if entropy(logits / 2**middle) < wanted else (low, middle)
    return float(2**low)


def load_weights(network: nn.Module, path: str | Path) -> nn.Module:
    """Load a checkpoint into a network: safetensors, or a torch state_dict read without running any code.

    Raises:
        InputError: there is no such file, it holds no weights, or they do not fit the network.
    """
    from safetensors import SafetensorError
    from safetensors.torch import load_file

    if not Path(path).is_file():
        raise InputError(f"there is no checkpoint {path}; give a .safetensors file or a torch state_dict")
    try:
        try:
            weights: dict[str, Any] = load_file(str(path))
        except SafetensorError:
            weights = torch.load(path, map_location="cpu", weights_only=True)
        weights = weights.get("state_dict", weights)
        network.load_state_dict(weights)
    except Exception as error:
        reason = " ".join(str(error).split())[:200]
        raise InputError(f"checkpoint {path} does not fit {type(network).__name__}: {reason}") from None
    return network


def _targets(dataset: Any) -> Tensor:
    return torch.cat([batch.target for batch in PairLoader(dataset)])
