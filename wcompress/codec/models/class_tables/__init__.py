"""Frequency tables, a pair for each class of scales."""
