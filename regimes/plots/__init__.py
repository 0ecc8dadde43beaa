"""Figures and reports: phase diagram, metric panels, report page, HTML page, search and discovery plots. Torch-free."""
