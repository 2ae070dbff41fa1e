"""What several test files make: networks, loops, records, oracles."""
