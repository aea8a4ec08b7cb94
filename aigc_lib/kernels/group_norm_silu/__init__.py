"""GroupNorm and SiLU in one: kernels, and how they join autograd."""
