"""Refinement: distilling a model while it is quantised, so that it becomes far smaller at the same score."""
