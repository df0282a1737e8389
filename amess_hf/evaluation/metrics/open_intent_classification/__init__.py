"""Open intent classification."""
