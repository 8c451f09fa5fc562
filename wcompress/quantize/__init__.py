"""Floats ↔ integer symbols.

trellis   state machines, the rate–distortion optimised search (encoder) and the walk (decoder)
"""
