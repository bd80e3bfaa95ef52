"""AI-Toolkit configurations for Flux LoRAs: written, checked, explained, in Korean and English.

`schema` says which keys there are, `reading` turns a file into them, `keys` explains them, `rules`
finds what AI-Toolkit would pass over in silence, `estimates` says what a run will cost. Knows no
torch.
"""
