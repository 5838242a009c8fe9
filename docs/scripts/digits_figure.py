"""Draws docs/figures/digits.png: python docs/scripts/digits_figure.py"""

from pathlib import Path

import matplotlib.pyplot as plt
import numpy as np

from mfh.tasks.digits.world import World, dial, spectrogram, split_scans, write

generator = np.random.default_rng(8)
digits = World().draw(1, generator)
recording = spectrogram(dial(digits.heard, 1.0, generator))[0, 0].numpy()
picture = write(digits.seen, split_scans(0)["train"], 0.1, generator)[0, 0].numpy()

figure, (left, right) = plt.subplots(1, 2, figsize=(7.2, 2.6), width_ratios=(1.15, 1), layout="constrained")
(general, teacher_only), (_, distractor) = digits.heard[0], digits.seen[0]
# Frame t is centred on sample 64 t, so it spans half a hop on either side: 8 ms.
left.imshow(
    recording, origin="lower", aspect="auto", cmap="magma", interpolation="nearest", extent=(-8, 200, -16, 2016)
)
left.axvline(100, color="white", linestyle="--", linewidth=1)
left.set(title=f"recording: {general}, then {teacher_only}", xlabel="time (ms)", ylabel="frequency (Hz)")
right.imshow(picture, cmap="gray_r")
right.axvline(7.5, color="tab:blue", linestyle="--", linewidth=1)
right.set(title=f"picture: {general}, then distractor {distractor}", xticks=[], yticks=[])
verdict = "exceeds" if digits.target[0] else "does not exceed"
figure.suptitle(f"label {digits.target[0]}: {general} + {teacher_only} {verdict} 9", fontsize=11)
figure.savefig(Path(__file__).parents[1] / "figures" / "digits.png", dpi=110)
