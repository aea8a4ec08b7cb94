"""LayerNorm and RMSNorm: kernels, and how they join autograd."""
