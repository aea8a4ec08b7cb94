"""Objectives: pure functions of tensors, one value per example, in nats."""
