"""The embedded image model: a small Flux, and the panels it is trained on."""
