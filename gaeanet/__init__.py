"""gaeanet: train the ImageNet network found by GAEA (Li et al. 2020, arXiv 2004.07802) and its relatives."""

__version__ = "0.1.0"
