"""What each method stores, and how that is restored."""
