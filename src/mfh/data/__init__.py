"""Paired data: batches, epochs, rows of outputs, and teachers known only by their outputs."""
