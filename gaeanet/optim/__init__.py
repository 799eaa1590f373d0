"""Optimization: schedules, Muon, parameter groups, the moving average of the weights."""
