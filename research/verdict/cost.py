"""What a forecast costs beside a training: processor seconds of both, for the small networks of the shipped tasks.

python research/verdict/cost.py --report research/verdict/reports/cost-YYYY-MM-DD.md
"""

import argparse
import sys
import time
from pathlib import Path

import torch

import mfh

sys.path.insert(0, str(Path(__file__).parents[2] / "benchmarks"))
sys.path.insert(0, str(Path(__file__).parent))

from verdict import made

from common import Report
from mfh.studies.forecast import forecast
from mfh.studies.networks import Networks
from mfh.studies.settings import Settings
from real import Setting, table

SETTINGS = (
    Setting("htad", "both", "audio", "50"),
    Setting("numerals", "pix", "zer", "100"),
    Setting("numerals", "pix", "zer", "all"),
    Setting("smartwatch", "accelerometer", "gyroscope", "100"),
)


def seconds(function):
    """Processor time of a call, the second time it is made."""
    function()
    start = time.process_time()
    function()
    return time.process_time() - start


def train(setting):
    """Train one student for as many steps as distillation takes, alone."""
    options = Settings.of(processes=1, ensemble="off", set=setting.arguments)
    mfh.study(setting.task, arms=["no-kd", "longer"], num_seeds=1, settings=options)


def main():
    """Measure, and write the report."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--report", type=Path)
    options = parser.parse_args()
    torch.set_num_threads(1)
    say = Report("What a forecast costs", "Times are processor times of one thread.")
    rows = []
    for setting in SETTINGS:
        task = made(setting, 0)
        found = (
            seconds(lambda task=task: forecast(Networks(task, 0, Settings()))),
            seconds(lambda setting=setting: train(setting)),
        )
        rows.append([setting.name, f"{found[0]:.2f}", f"{found[1]:.2f}", f"{100 * found[0] / found[1]:.0f} %"])
    table(say, ["setting", "forecast, s", "study of no-kd and longer, one seed, s", "forecast over study"], rows)
    say.write(options.report)


if __name__ == "__main__":
    main()
