"""What packing asks of a method, and how each answers."""
