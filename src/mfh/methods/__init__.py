"""Distillation methods: what a student minimises beside the loss of its labels."""

from mfh.methods.batch import Batch as Batch
from mfh.methods.batch import Context as Context
from mfh.methods.batch import Method as Method
