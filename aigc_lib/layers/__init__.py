"""Modules and codes that two or more models share."""
