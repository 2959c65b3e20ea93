"""The rule on a GPU: guidance.py as a handful of Triton kernels, where PyTorch launches over a hundred."""
