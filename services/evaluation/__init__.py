"""Evaluation: a proposal in; stages, a verdict, and a summary or feedback out."""
