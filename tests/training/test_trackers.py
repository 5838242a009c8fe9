"""Weights & Biases and MLflow themselves, offline: each network has a run of its own, which holds its history."""

import csv
import json
import os
import subprocess
import sys

import pytest

import tiny_task

#: The networks of the study below, by the names of their histories.
NETWORKS = {"teacher", "student", "distilled-regular"}


@pytest.fixture(scope="module")
def studied(tmp_path_factory):
    """Run a study with a logger, in a process of its own as on the command line; returns the run folder."""

    def study(logger):
        folder = tmp_path_factory.mktemp(logger)
        words = ("--arms", "no-kd", "regular", "--num-seeds", "1", "--processes", "1", "--epochs", "2", "--quiet")
        command = [sys.executable, "-m", "mfh", "study", tiny_task.__file__, *words, "--logger", logger, "--out", "run"]
        offline = {"WANDB_MODE": "offline", "WANDB_SILENT": "true", "MLFLOW_DISABLE_TELEMETRY": "true"}
        kept = {name: value for name, value in os.environ.items() if not name.startswith(("WANDB_", "MLFLOW_"))}
        done = subprocess.run(
            command, cwd=folder, env=kept | offline, capture_output=True, text=True, check=False, timeout=600
        )
        assert done.returncode == 0, done.stderr
        return folder / "run"

    return study


def history(folder, network):
    """The validation accuracy by epoch that the run folder holds of a network."""
    role = "teacher" if network == "teacher" else "student"
    with (folder / "seed-0" / "histories" / f"{network}.csv").open(encoding="utf-8") as file:
        return [float(row[f"{role}_val_accuracy"]) for row in csv.DictReader(file)]


def test_mlflow_runs_hold_the_histories(studied):
    folder = studied("mlflow")
    runs = {path.read_text(): path.parents[1] for path in (folder / "seed-0/logs").glob("*/*/tags/mlflow.runName")}
    assert set(runs) == NETWORKS
    for name, place in runs.items():
        (metric,) = (place / "metrics").glob("*_val_accuracy")
        told = [float(line.split()[1]) for line in metric.read_text().splitlines()]
        assert told == pytest.approx(history(folder, name))


def test_wandb_runs_hold_the_histories(studied):
    folder = studied("wandb")
    contents = [path.read_bytes() for path in (folder / "seed-0/logs/wandb").glob("offline-run-*/*.wandb")]
    assert len(contents) == len(NETWORKS)
    for name in NETWORKS:
        # In the files, a text stands after its length.
        (content,) = [content for content in contents if bytes([len(name)]) + name.encode() in content]
        for value in history(folder, name):
            assert json.dumps(value).encode() in content


def test_mlflow_goes_where_its_own_variable_says(tmp_path):
    """The address of a server or a database is MLflow's business; nothing is written to the run folder then."""
    code = (
        "from mfh.training.trackers import find_tracker\n"
        "logger = find_tracker('mlflow', 'folder', 'teacher')\n"
        "print(logger._tracking_uri)"
    )
    given = os.environ | {"MLFLOW_TRACKING_URI": "http://127.0.0.1:9"}
    command = [sys.executable, "-c", code]
    shown = subprocess.run(command, cwd=tmp_path, env=given, capture_output=True, text=True, check=False)
    assert shown.stdout.strip() == "http://127.0.0.1:9", shown.stderr
    assert not (tmp_path / "folder").exists()
