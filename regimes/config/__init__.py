"""What is asked: a sweep file, read and checked as a whole before any work, and the keys of its cells."""

from regimes.config.recipe import RECIPES, Recipe
from regimes.config.sweep import Sweep

__all__ = ["RECIPES", "Recipe", "Sweep"]
