"""Models that give a density in closed form."""
