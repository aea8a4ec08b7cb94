"""Fused attention: kernels forward and backward, and how they join autograd."""
