"""Mixes of traffic as data files, and what reads them."""
