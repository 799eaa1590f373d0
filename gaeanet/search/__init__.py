"""Architecture search: weight sharing over the DARTS search space (Li et al. 2020, arXiv 2004.07802)."""
