"""What a run leaves and others read: run directories, checkpoints, exports, and where they came from."""
