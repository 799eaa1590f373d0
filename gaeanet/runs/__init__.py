"""Where a run is kept and followed: a directory, a cluster, a bucket, trackers."""
