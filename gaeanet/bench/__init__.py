"""`gaeanet bench`: the time of each stage of training on this machine."""
