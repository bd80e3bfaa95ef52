"""Benchmarks of single parts: each prints a table, then one line of JSON with its ratios."""
