"""The rules, by what they look at. Importing this registers all of them."""

from models.training.config.rules import data, model, names, network, sampling, structure, training

__all__ = ["data", "model", "names", "network", "sampling", "structure", "training"]
