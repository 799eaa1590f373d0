"""What changes weights: schedules, Muon, parameter groups, the moving average."""
