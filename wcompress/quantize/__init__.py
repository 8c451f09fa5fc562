"""Floats ↔ integer symbols.

trellis   state machines, and the walk through them (decoder)
search    the symbols that cost least (encoder)
"""
