"""Counting what a network gets right, and how far the numbers can be trusted."""
