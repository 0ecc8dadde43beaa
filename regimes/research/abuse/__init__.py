"""Random hostile inputs: what the package makes of them."""
