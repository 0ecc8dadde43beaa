"""The record: what a run measured, as one labelled grid (xarray). Nothing here imports torch."""
