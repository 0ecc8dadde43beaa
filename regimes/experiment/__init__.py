"""The experiment engine: train -> prune -> retrain -> measure, every stage cached under a content key.

See README.md in this folder.
"""
