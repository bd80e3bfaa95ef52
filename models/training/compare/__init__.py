"""Base and checkpoints, or models and settings, side by side: pictures, figures, a report."""
