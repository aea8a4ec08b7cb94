"""Functions on tensors, one file per op: the formula, a plain reference, and the dispatch."""
