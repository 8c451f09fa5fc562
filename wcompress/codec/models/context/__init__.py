"""A model that follows the symbols before."""
