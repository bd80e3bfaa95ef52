"""Fine-tuning: pictures to a style LoRA that the image runner serves, proposals to a judge LoRA.

Everything is a verb of `python -m models.training`. Knows no HTTP framework and no service.
"""
