"""Metrics: how good a model's output is, each a number with a stated unit."""
