"""Prompts, one folder a version, one file a prompt: purpose, inputs, answer type at its head."""
