"""Where images come from: catalogs, order, folders, archives, shards, buckets."""
