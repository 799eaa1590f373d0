"""Images: where they come from, in which order they are read, and how they become batches."""
