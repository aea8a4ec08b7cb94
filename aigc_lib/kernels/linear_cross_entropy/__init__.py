"""Cross-entropy of a linear layer in chunks of rows, and how it joins autograd."""
