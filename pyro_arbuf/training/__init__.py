"""Batches, the loop, the state of a run."""
