"""GPU kernels in Triton: optional, compiled on first use, and checked against PyTorch's operators where they run.

Only this package imports triton, and nothing imports this package before a network is on a GPU that suits it.
"""
