"""Training a network: the loop, the step, objectives, the display."""
