"""Kernels without a GPU: every shipped configuration compiled for two capabilities."""
