"""The experiment file as frozen, typed blocks."""
