"""The rule on a GPU: guidance.py in a handful of Triton kernels, where it takes over a hundred."""
