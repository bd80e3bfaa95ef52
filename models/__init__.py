"""How inference is done and where weights come from. Knows nothing of HTTP frameworks."""
