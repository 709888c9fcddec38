"""Near-duplicates and contamination: pure functions over texts and arrays."""
