"""The default task, which needs no download: the teacher hears dialled digits, the student sees handwritten ones."""

from functools import partial

from mfh.tasks.digits.networks import LAYER, digit_of_channel, student, teacher
from mfh.tasks.digits.world import World
from mfh.tasks.task import Task
from mfh.training.recipe import Recipe

__all__ = ["World", "task"]


def task(
    seed: int = 0,
    *,
    general: int = 1,
    teacher_only: int = 1,
    student_only: int = 0,
    student_distractors: int = 1,
    teacher_distractors: int = 0,
    num_train: int = 1000,
    num_val: int = 500,
    num_test: int = 2000,
    audio_noise: float = 1.0,
    picture_noise: float = 0.1,
    num_classes: int = 2,
) -> Task:
    """The digits world as a task: data drawn from a seed, two networks, and the truth about the teacher's channels.

    In the truth, a channel of the teacher's flattened convolutions is modality-general if the digit under its time
    column is a general one. `mfh.tasks.digits.networks.digit_of_channel` says how sharp this truth is.

    Args:
        seed: Seed of the digits, the noise and the split of the handwritten scans.
        general: Number of decisive digits in both recording and picture.
        teacher_only: Number of decisive digits in the recording only.
        student_only: Number of decisive digits in the picture only.
        student_distractors: Number of digits in the picture that decide nothing.
        teacher_distractors: Number of digits in the recording that decide nothing.
        num_train: Number of training pairs.
        num_val: Number of validation pairs.
        num_test: Number of test pairs.
        audio_noise: Standard deviation of the recording's white noise. The tones have amplitude 1.
        picture_noise: Standard deviation of the picture's noise. Without noise, pixels lie in [0, 1].
        num_classes: Number of classes: equally likely ranges of the sum of the decisive digits.

    Returns:
        A task with samples (recording (1, 65, T), picture (1, 8, 8 B), target), layer "flatten" in both networks and
        `truth` (C,). Its `facts` hold the counts, alpha, beta, gamma and the best possible accuracies.

    Raises:
        InputError: The counts make no world, see `World`, a size is not positive, or the seed is negative.

    Example:
        >>> digits = task(seed=3, num_train=8, num_val=4, num_test=4)
        >>> len(digits.train), digits.facts["gamma"], digits.facts["best_student_accuracy"]
        (8, 0.5, 0.75)
    """
    world = World(
        general=general,
        teacher_only=teacher_only,
        student_only=student_only,
        student_distractors=student_distractors,
        teacher_distractors=teacher_distractors,
        audio_noise=audio_noise,
        picture_noise=picture_noise,
        num_classes=num_classes,
    )
    return Task(
        name="digits",
        teacher=partial(teacher, world.num_heard, num_classes),
        student=partial(student, world.num_seen, num_classes),
        layer=LAYER,
        student_layer=LAYER,
        train=world.split("train", num_train, seed),
        val=world.split("val", num_val, seed),
        test=world.split("test", num_test, seed),
        truth=digit_of_channel(world.num_heard) < world.general,
        recipe=Recipe(epochs=15, batch_size=64),
        facts=world.facts(),
    )
