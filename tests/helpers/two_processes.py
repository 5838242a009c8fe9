"""One of two processes that score a teacher together; run by test_saliency."""

import datetime
import gc
import json
import sys
from pathlib import Path

import torch
from torch import nn

from mfh import InputError, channel_saliency
from networks import Branching, batches, flat, image, randn, seeded

COUNT, FIRST = 41, 13


def pairs():
    x = image(COUNT, 1)
    s = randn(COUNT, 4, seed=2)
    s[:, :2] += x.flatten(1)[:, :2]
    return x, s, torch.zeros(COUNT)


def networks():
    affine = nn.Sequential(nn.Conv2d(2, 4, 3), nn.ReLU(), nn.Flatten(), nn.Linear(64, 3))
    # Affine on what the first process sees, not on the rest: both must take the same way all the same.
    bent = nn.Sequential(nn.Conv2d(2, 4, 3), nn.ReLU(), nn.Flatten(), nn.Linear(64, 5), nn.ReLU(), nn.Linear(5, 3))
    return affine, bent, nn.Sequential(nn.Linear(4, 8), nn.ReLU(), nn.Linear(8, 3))


def measure(data):
    affine, bent, student = seeded(networks)
    branching = seeded(Branching)
    x, s, y = data
    flattened = (x.flatten(1)[:, :5], s, y)
    results = {}
    for name, teacher, layer, options in [
        ("mse", affine, "1", {}),
        ("l1", affine, "1", {"distance": "l1"}),
        ("agreement", affine, "1", {"score": "agreement"}),
        ("sampled", affine, "1", {"permutations": 3}),
        ("auto", bent, "1", {}),
        ("probe", affine, "1", {"score": "probe"}),
        ("whole forwards", branching, "first", {"permutations": 3}),
    ]:
        given = flattened if teacher is branching else data
        saliency = channel_saliency(teacher, student, batches(given, 6), layer=layer, **options)
        results[name] = {
            "scores": saliency.scores.tolist(),
            "standard_error": saliency.standard_error.tolist(),
            "means": saliency.means.tolist(),
            "baseline": saliency.baseline,
            "samples": saliency.samples,
        }
    return results


def refusals(rank, data):
    affine, _, student = seeded(networks)
    messages = {}
    sick = (data[0], data[1] * torch.nan, data[2]) if rank == 1 else data
    for name, given in [("empty", batches(data, 6) if rank == 0 else []), ("nan", [*batches(data, 6), sick])]:
        try:
            channel_saliency(affine, student, given, layer="1")
        except InputError as error:
            messages[name] = str(error)
    return messages


def main():
    rank, folder = int(sys.argv[1]), Path(sys.argv[2])
    torch.set_num_threads(1)
    torch.distributed.init_process_group(
        "gloo",
        init_method=f"file://{folder / 'meeting'}",
        rank=rank,
        world_size=2,
        timeout=datetime.timedelta(minutes=10),
    )
    rows = slice(0, FIRST) if rank == 0 else slice(FIRST, COUNT)
    data = tuple(part[rows] for part in pairs())
    results = measure(data)
    results["errors"] = refusals(rank, data)
    (folder / f"{rank}.json").write_text(json.dumps(results))
    gc.collect()
    torch.distributed.destroy_process_group()


if __name__ == "__main__":
    flat(1, 0)
    main()
