"""Cross-entropy in one pass over the logits: kernels, and how they join autograd."""
