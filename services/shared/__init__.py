"""What two or more services use: errors, settings, the web face, telemetry, addresses."""
