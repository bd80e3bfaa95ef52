"""Vets a creator: a YouTube channel, judged by the rules that proposals are judged by."""
