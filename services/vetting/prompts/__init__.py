"""Prompts of vettings: one folder a version, one file a prompt; library.py renders them."""
