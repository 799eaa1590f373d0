"""Batches, prepared by worker processes."""
