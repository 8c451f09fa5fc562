"""Symbols ↔ bytes. No torch.

bits      single bits and universal codes, for the little that comes before any table
tables    integer frequency tables and their compact form
coder     arrays of symbols under such tables
"""
