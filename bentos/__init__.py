"""How the services ship: the whole system as one Bento here, one folder for each service alone."""
