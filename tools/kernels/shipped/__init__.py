"""For each folder of kernels, `calls(dtype)`: labels and calls for every configuration shipped."""
