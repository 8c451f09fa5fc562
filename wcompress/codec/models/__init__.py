"""What symbols are coded under."""
