"""What every arm of a study is, in a line each."""

from collections.abc import Sequence

from mfh.figures.style import arm_colour
from mfh.reporting.page import Table
from mfh.studies.grid import method_and_focus

_KD = "learns the logits of the teacher"
_JOINT = f"{_KD} of the joint training"
#: Arm or method -> how its student is made.
_WORDS = {
    "no-kd": "learns from labels alone, without a teacher; every gain is over this arm",
    "regular": f"ordinary distillation: {_KD} that is most accurate, trained on labels",
    "aligned": f"{_JOINT} of teacher and student",
    "aligned-student": "the student of the joint training itself, without distillation",
    "random": f"{_JOINT}, with random channels removed",
    "specific": f"{_JOINT}, with its most modality-specific channels kept: the opposite of general",
    "general": f"{_JOINT}, with its most modality-general channels kept (Algorithm 1)",
    "soft": f"{_KD}, its channels weighted by how well the student's modality predicts them",
    "longer": "control without a teacher: no-kd with as many steps as distillation takes",
    "label-smoothing": "control without a teacher: no-kd with softer labels",
    "self-training": "control: learns the predictions of the no-kd student, also on pairs without labels",
    "teacher-shuffled": "control: learns the teacher's predictions of other pairs",
    "soft-shuffled": "control: soft, with its weights shuffled over the channels",
    "tempered": "control: regular at the temperature at which its targets are as uncertain as those of soft",
    "linear": "a linear model on the student's inputs, trained on labels",
    "dkd": "learns the logits, target class and other classes apart (Zhao et al. 2022)",
    "dist": "learns how predictions relate, between classes and between samples (Huang et al. 2022)",
    "fitnets": "learns the teacher's features through a linear map (Romero et al. 2015)",
    "vid": "predicts the teacher's features, each as well as it can be predicted (Ahn et al. 2019)",
    "simkd": "learns the teacher's features, and keeps the teacher's last layer (Chen et al. 2022)",
    "rkd": "learns distances and angles between samples (Park et al. 2019)",
    "sp": "learns which samples are alike for the teacher (Tung and Mori 2019)",
    "mad": "learns which samples are alike, weighted by how unsure the teacher is (Wei et al. 2023)",
    "crd": "learns to find the teacher's features of the same pair among others (Tian et al. 2020)",
    "queue": "learns how similar the teacher finds a sample to those of a queue (COMODO, Chen et al. 2025)",
    "fd-cmkd": "learns low frequencies of the teacher's features strictly and high ones loosely (Liu et al. 2026)",
    "c2kd": "learns from a copy of the teacher that adapts, where both agree (Huo et al. 2024)",
    "attainable": "learns the part of the teacher's logits that the student's features predict",
}
_FOCUS = {
    "aligned": "the teacher is that of the joint training",
    "random": "random channels do not count",
    "specific": "only modality-specific channels count",
    "general": "only modality-general channels count",
    "soft": "channels count as in soft",
}


def legend_table(arms: Sequence[str]) -> Table:
    """The arms of a study, with their colours and how their students are made.

    Args:
        arms: Names of arms, in order.
    """
    rows = [[arm, definition(arm)] for arm in arms]
    return Table(["Arm", "Its student"], rows, colours=[arm_colour(arm) for arm in arms])


def definition(arm: str) -> str:
    """How the student of an arm is made.

    Example:
        >>> definition("no-kd")
        'learns from labels alone, without a teacher; every gain is over this arm'
        >>> definition("mine+soft")
        "learns by the study's own method; channels count as in soft"
    """
    if arm in _WORDS:
        return _WORDS[arm]
    method, focus = method_and_focus(arm)
    words = _WORDS.get(method, "learns by the study's own method")
    return f"{words}; {_FOCUS[focus]}" if focus else words
