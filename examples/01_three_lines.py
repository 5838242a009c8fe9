"""The three lines of the site on real networks and data: the embedded digits world, a few epochs.

    python examples/01_three_lines.py

Takes about ten seconds on one core. Four epochs are too few for good students; `mfh demo --digits` runs all fifteen, on
several seeds, with statistics.
"""

import mfh
from mfh.tasks.digits import task

digits = task(seed=0, num_train=500)  # recordings of dialled digits, pictures of handwritten ones
train, val = digits.train, digits.val  # data sets of (teacher_input, student_input, target)
few = mfh.Recipe(epochs=4)

# Any two networks that return logits: here both are trained on labels first.
teacher = mfh.pretrain(digits.teacher(), train, val, role="teacher", recipe=few).network
student = mfh.pretrain(digits.student(), train, val, role="student", recipe=few).network
pairs = mfh.PairLoader(train)  # or a DataLoader of (teacher_input, student_input, target) batches
new_student = digits.student()

saliency = mfh.channel_saliency(teacher, student, pairs, layer="flatten", score="probe")
focused = mfh.mask_channels(teacher, saliency.mask("soft"))
better = mfh.distill(focused, new_student, train, val).student

if __name__ == "__main__":
    print(f"{len(saliency.scores)} channels; most general: {', '.join(map(str, saliency.ranking[:5]))}")
    print(f"student returns logits of shape {tuple(better(val[0][1][None]).shape)}")
