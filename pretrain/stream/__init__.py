"""Tars become batches: split by rank and worker, resumable to the sample."""
