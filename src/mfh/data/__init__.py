"""Paired data: batches, the batches of an epoch, rows collected over batches, and a teacher given by its outputs."""
