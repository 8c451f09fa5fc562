"""Composes checkpoint, blocks, VAE and archive into pack, open, load, inspect and verify."""
