"""One class per pixel: an RGB teacher, a depth student, rendered scenes.

    python examples/05_dense.py

Boxes stand on a floor; a box is tall or low (seen in the picture's shading and in depth) and painted red or green (seen
in the picture only). The border of the picture has no labels. Takes about twenty seconds on one core.
"""

import torch
from torch import Tensor, nn
from torch.utils.data import TensorDataset

import mfh

SIZE, UNLABELLED = 16, 255
FLOOR, LOW_RED, LOW_GREEN, TALL = range(4)  # the paint of tall boxes does not matter


def scenes(count: int, generator: torch.Generator) -> TensorDataset:
    """Pictures (N, 3, 16, 16), depth (N, 1, 16, 16), classes (N, 16, 16)."""
    height, green = torch.zeros(count, SIZE, SIZE), torch.zeros(count, SIZE, SIZE)
    for _ in range(3):  # boxes, the later in front
        corner = torch.randint(1, SIZE - 7, (count, 2), generator=generator)
        size = torch.randint(3, 7, (count, 2), generator=generator)
        tall, paint = torch.randint(0, 2, (2, count), generator=generator)
        along = torch.arange(SIZE)
        inside = (along >= corner[:, :, None]) & (along < (corner + size)[:, :, None])
        box = inside[:, 0, :, None] & inside[:, 1, None, :]
        height = torch.where(box, 1 + tall[:, None, None].float(), height)
        green = torch.where(box, paint[:, None, None].float(), green)
    target = torch.where(height == 2, TALL, torch.where(green == 1, LOW_GREEN, LOW_RED))
    target = torch.where(height == 0, FLOOR, target)
    target[:, 0] = target[:, -1] = target[:, :, 0] = target[:, :, -1] = UNLABELLED
    shade = 0.4 + 0.3 * height
    picture = torch.stack([shade * (1 - green), shade * green, shade], dim=1)
    picture = picture + 0.2 * torch.randn(picture.shape, generator=generator)
    depth = 2 - height[:, None] + 0.3 * torch.randn(count, 1, SIZE, SIZE, generator=generator)
    return TensorDataset(picture, depth, target)


def segmenter(inputs: int, width: int) -> nn.Module:
    def block(given: int) -> list[nn.Module]:
        return [nn.Conv2d(given, width, 3, padding=1), nn.BatchNorm2d(width), nn.ReLU()]

    return nn.Sequential(*block(inputs), *block(width), nn.Conv2d(width, 4, 1))


def teacher() -> nn.Module:
    return segmenter(3, 16)


def student() -> nn.Module:
    return segmenter(1, 8)


def task(seed: int = 0) -> mfh.Task:
    draws = torch.Generator().manual_seed(seed)
    return mfh.Task(
        name="scenes",
        teacher=teacher,
        student=student,
        layer="5",  # the last ReLU: 16 channels, each a map of the whole picture
        student_layer="5",
        train=scenes(128, draws),
        val=scenes(64, draws),
        test=scenes(64, draws),
        problem=mfh.Problem.dense(ignore_index=UNLABELLED),
        recipe=mfh.Recipe(epochs=4, batch_size=16, optimizer=lambda p: torch.optim.Adam(p, lr=1e-2)),
    )


def picture_of(classes: Tensor) -> str:
    return "\n".join("".join(".rgT"[c] for c in row) for row in classes.tolist())


if __name__ == "__main__":
    result = mfh.study(task, arms=["no-kd", "regular", "general"], num_seeds=2)
    print(f"{result.scale.title}, by seed:")
    print((100 * result.by_seed()).round(1))
    world = task(0)
    fit = mfh.pretrain(student(), world.train, world.val, role="student", problem=world.problem, recipe=world.recipe)
    with torch.no_grad():
        seen = fit.network(world.test[0][1][None])[0].argmax(0)
    print(f"What the depth camera makes of one scene (T tall, r and g low):\n{picture_of(seen)}")
