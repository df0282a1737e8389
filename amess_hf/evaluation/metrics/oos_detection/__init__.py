"""Out-of-scope detection."""
