"""Run folders as studies and Gaussian experiments leave them, with invented results; shared by tests of reports."""

import json

import numpy as np
import pandas as pd

GAINS = {
    "no-kd": 0.0,
    "regular": 0.001,
    "aligned": 0.01,
    "aligned-student": 0.019,
    "random": 0.002,
    "specific": -0.02,
    "general": 0.016,
    "soft": 0.028,
}
TEACHERS = {
    "regular": 0.97,
    "aligned": 0.95,
    "random": 0.84,
    "specific": 0.9,
    "general": 0.78,
    "soft": 0.81,
}


def rows(num_seeds=8, gains=GAINS, ratios=(0.5,), seed=0, spread=0.012):
    generator = np.random.default_rng(seed)
    content = []
    for number in range(num_seeds):
        level = 0.69 + 0.02 * generator.normal()
        for arm, gain in gains.items():
            masked = arm in ("random", "specific", "general")
            score = {"general": "distance", "specific": "distance", "soft": "probe"}.get(arm)
            layer = "flatten" if masked or arm == "soft" else None
            for ratio in ratios if masked else (None,):
                key = {"arm": arm, "score": score, "layer": layer, "ratio": ratio, "seed": number}
                change = gain * (1 if ratio is None else 4 * ratio * (1 - ratio))
                noise = spread * generator.normal(size=4) * (arm != "no-kd")
                for split, extra in (("val", noise[0]), ("test", noise[1])):
                    content.append({**key, "split": split, "metric": "accuracy", "value": level + change + extra})
                content.append({**key, "split": "val", "metric": "best_epoch", "value": 9})
                if arm in TEACHERS:
                    for split, extra in (("val", noise[2]), ("test", noise[3])):
                        value = TEACHERS[arm] + 0.5 * extra
                        content.append({**key, "split": split, "metric": "teacher_accuracy", "value": value})
        for score, area in (("distance", 0.83), ("agreement", 0.88), ("probe", 0.93)):
            value = area + 0.02 * generator.normal()
            facts = {"arm": None, "score": score, "layer": "flatten", "ratio": None, "seed": number}
            content.append({**facts, "split": "train", "metric": "auroc", "value": value})
    return pd.DataFrame(content)


def write(folder, frame=None, **config):
    folder.mkdir(parents=True, exist_ok=True)
    frame = rows() if frame is None else frame
    frame.to_csv(folder / "results.csv", index=False)
    settings = {
        "command": "study",
        "task": "digits",
        "arms": list(GAINS),
        "ratios": [0.5],
        "num_seeds": 8,
        "scores": ["distance", "agreement", "probe"],
        "layers": ["flatten"],
        "data_redrawn": True,
        "epochs": 15,
        "facts": {
            "alpha": 0.5,
            "beta": 0.0,
            "gamma": 0.5,
            "general": 1,
            "teacher_only": 1,
            "student_only": 0,
            "best_teacher_accuracy": 1.0,
            "best_student_accuracy": 0.75,
            "majority_accuracy": 0.55,
            "description": "Recordings of dialled digits and pictures of handwritten ones; is their sum large?",
        },
    }
    (folder / "config.json").write_text(json.dumps({**settings, **config}))
    environment = {"python": "3.11", "torch": "2.13.0", "cpu": "2 cores", "seconds": 171.3}
    (folder / "environment.json").write_text(json.dumps({**environment, "repeat": "mfh demo --out runs/demo"}))
    return folder


def write_saliencies(folder, num_channels=512, seed=0):
    from mfh.saliency.scores import ChannelSaliency

    generator = np.random.default_rng(seed)
    truth = np.arange(num_channels) % 8 < 4
    (folder / "seed-0").mkdir(parents=True, exist_ok=True)
    (folder / "seed-0" / "truth.json").write_text(json.dumps({"general": truth.tolist()}))
    for score in ("distance", "probe"):
        scores = generator.beta(1, 6, num_channels) + 0.35 * truth * generator.beta(2, 3, num_channels)
        ChannelSaliency(
            scores=scores,
            standard_error=np.zeros(num_channels),
            baseline=1.0,
            means=np.zeros(num_channels),
            layer="flatten",
            channel_dim=1,
            score=score,
            distance="mse",
            permutations="exact" if score == "distance" else None,
            samples=1000,
            fingerprint="none",
        ).save(folder / "seed-0" / f"saliency-{score}.safetensors")


def write_records(folder, frame=None, num_classes=2, epochs=15, seed=0):
    """Histories of training and counts per class, for every variant and seed of the frame."""
    from mfh.studies.folder import Run
    from mfh.studies.grid import Cell

    generator = np.random.default_rng(seed)
    frame = rows() if frame is None else frame
    frame = frame[(frame["metric"] == "accuracy") & (frame["split"] == "test")]

    def history(role, level):
        curve = level * (1 - 0.4 * np.exp(-np.arange(epochs) / 3)) + 0.01 * generator.normal(size=epochs)
        loss = 1.2 * np.exp(-np.arange(epochs) / 3) + 0.4 + 0.02 * np.arange(epochs)
        names = ("epoch", "train_loss", f"{role}_val_accuracy", f"{role}_val_loss")
        return [dict(zip(names, row, strict=True)) for row in zip(range(epochs), 0.9 * loss, curve, loss, strict=True)]

    for row in frame.fillna({"score": "", "layer": ""}).itertuples():
        cell = Cell(row.arm, row.score, None if pd.isna(row.ratio) else row.ratio, row.layer)
        place = Run(folder).seed(row.seed)
        if row.arm not in ("no-kd", "aligned-student"):
            place.write_history(cell, history("student", row.value))
        chances = np.full((num_classes, num_classes), (1 - row.value) / num_classes) + row.value * np.eye(num_classes)
        place.write_counts(cell, "test", np.array([generator.multinomial(100, p / p.sum()) for p in chances]))
    for number in frame["seed"].unique():
        place = Run(folder).seed(number)
        place.write_history("teacher", history("teacher", 0.97))
        place.write_history("student", history("student", 0.7))
        joint = zip(history("teacher", 0.9), history("student", 0.71), strict=True)
        place.write_history("aligned", [one | other for one, other in joint])


def write_gaussian(folder, num_seeds=3):
    """All three experiments, at three settings each."""
    columns = ["experiment", "alpha", "beta", "gamma", "seed", "role", "arm", "accuracy"]
    generator = np.random.default_rng(0)
    masked = ("random", "true-general", "algorithm-1")
    rows = []
    for experiment, arms in (("vary-gamma", ()), ("vary-alpha", ()), ("modify-gamma", masked)):
        for step in (0.2, 0.5, 0.8):
            # Of alike circles that share so much; or of a student that has nothing of its own.
            alike = experiment != "vary-alpha"
            alpha, beta, gamma = (1 - step, 1 - step, step / (2 - step)) if alike else (step, 0.0, 1 - step)
            for seed in range(num_seeds):
                for role in ("teacher", "student"):
                    for arm in (*(["no-kd"] if role == "student" else []), "regular", *arms):
                        value = 70 + 5 * step * (arm != "no-kd") + generator.normal()
                        rows.append([experiment, alpha, beta, gamma, seed, role, arm, value])
    folder.mkdir(parents=True, exist_ok=True)
    pd.DataFrame(rows, columns=columns).to_csv(folder / "results.csv", index=False)
    (folder / "config.json").write_text(json.dumps({"command": "gauss all", "num_seeds": num_seeds}))
    return folder
