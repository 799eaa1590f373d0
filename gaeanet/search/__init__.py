"""The search that finds a cell: weight sharing over the DARTS space (Li et al. 2020, arXiv 2004.07802)."""
