"""Curves, pages and drawings."""
