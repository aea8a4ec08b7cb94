"""Embedded data sets: generated from a seed or already installed, never downloaded."""
