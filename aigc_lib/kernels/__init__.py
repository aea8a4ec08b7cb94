"""Triton kernels, one file per op (attention has two); `ops` alone imports them, when one is used.

A launcher takes tensors and returns tensors, and looks at shapes, strides and dtypes only. Thus the
same launcher runs on a GPU, in Triton's interpreter (TRITON_INTERPRET=1, tests/kernels), and before
a compiler without any device (`make kernels`).
"""
