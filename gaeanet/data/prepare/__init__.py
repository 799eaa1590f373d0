"""`gaeanet prepare`: class folders and shards, and the check of every image."""
