"""Trains a LoRA for a Flux.1-layout pipeline from an AI-Toolkit file. Read `loop` first.

`honoured` says what of the file is done and refuses the rest by name; `base` is the model,
`pictures` and `captions` what is learnt, `order` which of it when, `timesteps` the flow-matching
mathematics, `adapter` the LoRA and its file, `trainer` one step, `state` and `identity` how a run
goes on, `samples` and `metrics` what a person looks at. Any FluxPipeline folder will do; knows
nothing of `sketch`.
"""
