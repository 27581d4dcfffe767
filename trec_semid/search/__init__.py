"""Lists of the whole catalogue for users: exact scores, beams over codes, ensembles, popularity."""
