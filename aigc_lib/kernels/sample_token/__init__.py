"""Drawing a token: the kernels, and how they are registered."""
