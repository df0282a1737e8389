"""In-scope intent classification."""
