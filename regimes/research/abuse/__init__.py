"""Random malformed inputs, and what the package makes of them."""
