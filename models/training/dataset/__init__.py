"""From a folder of pictures with captions to data that can be trained on. Knows no torch."""
