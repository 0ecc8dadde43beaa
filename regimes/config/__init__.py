"""Configuration files: read, validated as a whole before any work, and hashed into content keys."""

from regimes.config.recipe import RECIPES, Recipe
from regimes.config.sweep import Sweep

__all__ = ["RECIPES", "Recipe", "Sweep"]
