"""The paper's synthetic Gaussian experiments, exact, fast and with statistics over many seeds.

    from mfh.gaussian import vary_gamma

    frame = vary_gamma(num_seeds=100)
    frame.groupby(["gamma", "role", "arm"])["accuracy"].mean()

All three experiments train linear softmax classifiers by full-batch gradient descent. They report the accuracy on
the test split after the last step, so nothing is selected on test data.
"""

from mfh.gaussian.crossing import SignChange, sign_change
from mfh.gaussian.experiments import modify_gamma, vary_alpha, vary_gamma
from mfh.gaussian.saliency import input_saliency
from mfh.gaussian.sampling import Pairs, sample
from mfh.gaussian.settings import ModifyGamma, VaryAlpha, VaryGamma
from mfh.gaussian.solver import Classifiers, fit, fit_jointly, initial_classifiers
from mfh.gaussian.tables import gains, summary, table_2
from mfh.gaussian.worlds import World, world_of

__all__ = [
    "Classifiers",
    "ModifyGamma",
    "Pairs",
    "SignChange",
    "VaryAlpha",
    "VaryGamma",
    "World",
    "fit",
    "fit_jointly",
    "gains",
    "initial_classifiers",
    "input_saliency",
    "modify_gamma",
    "sample",
    "sign_change",
    "summary",
    "table_2",
    "vary_alpha",
    "vary_gamma",
    "world_of",
]
