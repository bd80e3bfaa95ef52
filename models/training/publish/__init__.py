"""A checkpoint that was chosen: into the catalog, into a running image service, with its card."""
