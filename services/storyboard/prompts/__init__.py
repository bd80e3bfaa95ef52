"""What the language model is told: one file a prompt, one folder a version."""
