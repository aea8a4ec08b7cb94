"""For each file of kernels, calls that reach every configuration that it ships."""
