"""Drawing images with Flux.1-layout models: one running batch in which every row has its own LoRA,
LoRA scale, guidance, step count and seed, and joins and leaves at step boundaries.

Read engine.py first. Knows no HTTP.
"""
