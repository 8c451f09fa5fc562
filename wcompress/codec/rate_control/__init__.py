"""From a target to steps: the search, its floors, and what a solution is."""
