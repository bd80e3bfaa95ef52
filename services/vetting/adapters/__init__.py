"""Vendors behind the ports: YouTube, its image hosts, text recognition, SQL."""
