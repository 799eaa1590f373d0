"""Evaluation of networks on labelled images, with confidence intervals."""
