"""Kernels of our own for CPUs: optional, compiled when first needed, equal to PyTorch's operators and to Pillow's.

PyTorch's depthwise convolutions and batch norm take most of a training step on a CPU; these take a fraction of the
time (docs/performance.md). Everything works without them.
"""
