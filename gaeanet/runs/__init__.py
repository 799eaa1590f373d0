"""Execution contexts of a run (a directory, a Determined trial), its mirror in a bucket, trackers."""
