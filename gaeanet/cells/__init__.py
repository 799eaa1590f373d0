"""Cells as data: genotypes, the published ones, and the search space."""
