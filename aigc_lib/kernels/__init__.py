"""What runs below the ops, a folder each: Triton kernels, and register.py, which makes operators.

`ops` alone imports a register.py, when a call first takes it. A launcher takes tensors and returns
tensors, and looks at shapes, strides and dtypes only. Thus the same launcher runs on a GPU, in
Triton's interpreter (TRITON_INTERPRET=1, tests/kernels), and before a compiler without any device
(`make kernels`). linear_cross_entropy is plain PyTorch around the kernel of cross_entropy.
"""
