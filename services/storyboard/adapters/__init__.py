"""Vendors behind the ports: SQL, files, and the services that write, screen and draw."""
