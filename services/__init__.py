"""What runs behind HTTP: one folder a service, all with the same rooms."""
