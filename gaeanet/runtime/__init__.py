"""The machine and the process: devices, process groups, signals, names, imports."""
