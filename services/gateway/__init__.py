"""Gateway: the one public door. Keys, limits, and the way to every other service."""
