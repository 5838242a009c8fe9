"""An inert loss would pass every other test: in a setting built for it, each method beats plain training.

The pairs, the initial weights and the order are the same with and without the method. Loops are plain ones
(`taught_world.trained`); that `distill` gives the same students is the business of test_same_students.
"""

from functools import cache

import pytest

from mfh.methods import C2KD, CRD, DIST, DKD, FDCMKD, KD, MAD, RKD, SP, VID, Attainable, FitNets, Queue, SimKD
from taught_world import Plan, accuracy, new_student, trained, world

SEEDS = range(3)
#: 40 labelled pairs and 300 without labels; or 300 labelled pairs of which 60 % got a label at random.
FEW, NOISY = {"unlabelled": 300}, {"labelled": 300, "unlabelled": 0, "wrong": 0.6}


@cache
def scores(method, noisy):
    """Test accuracy in percent of the student of each seed."""
    found = []
    for seed in SEEDS:
        data = world(seed, **(NOISY if noisy else FEW))
        network = trained(method, data, Plan(epochs=20, batch=32, seed=seed), new_student(seed))
        found.append(accuracy(network, data.test_input, data.test_target))
    return found


def gains(method, over=None):
    pairs = zip(scores(method, method.needs_labels), scores(over, method.needs_labels), strict=True)
    return [with_it - without for with_it, without in pairs]


# One object for each method, so that what was computed for it is found again.
METHODS = [KD(), DKD(), DIST(), FitNets(), VID(), SimKD(), RKD(), SP(), MAD(), CRD(), Queue(), C2KD(), Attainable()]


@pytest.mark.parametrize("method", METHODS, ids=lambda method: method.name)
def test_each_method_beats_plain_training(method):
    found = gains(method)
    assert min(found) > 0
    assert sum(found) / len(found) > 2


def test_distances_of_frequencies_teach():
    """The published weights are not known. At 1 the distances between unit vectors hardly count; at 30 they do."""
    method = FDCMKD(low=30, high=30, labels=0)
    found = gains(method)
    assert min(found) > 0
    assert sum(found) / len(found) > 2


def test_it_is_knowledge_that_crosses_in_c2kd():
    """No tau is above 1, so there the proxies only follow their own networks."""
    method = next(method for method in METHODS if method.name == "c2kd")
    assert min(gains(method, over=C2KD(agreement=1.0))) > 0


def test_labels_are_right_often_enough_to_learn_from():
    assert min(scores(None, True)) > 35  # four classes
    assert min(scores(None, False)) > 35
