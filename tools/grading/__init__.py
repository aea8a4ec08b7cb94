"""Assignments: released from one source, graded in a sandbox."""
