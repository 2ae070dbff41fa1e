"""The claims, one study a file."""
