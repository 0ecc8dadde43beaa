"""Studies of the method and benchmarks of the implementation; nothing in the package imports this folder."""
