"""The pages of the book that are generated, and what Sphinx is taught about chapters."""
