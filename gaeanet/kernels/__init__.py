"""CPU kernels in C++: optional, compiled on first use, equal to the operators of PyTorch and Pillow.

PyTorch's depthwise convolutions and batch norm take most of a training step on a CPU; these take a fraction of the
time (docs/performance.md). Everything works without them.
"""
