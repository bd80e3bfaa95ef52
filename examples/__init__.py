"""Sample proposals, and a tour of the service that evaluates them (`make demo`)."""
