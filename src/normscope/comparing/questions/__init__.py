"""The questions that a comparison answers, one a file."""
