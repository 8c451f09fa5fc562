"""Trellis-coded quantisation: the trellis, its search, step scales, levels, the sequence of weights."""
