"""The record of a run: its measurements as one labelled `xarray.Dataset`, its checks and its export. Torch-free."""
