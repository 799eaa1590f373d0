"""Training a network: the loop, the step, and what is said meanwhile."""
