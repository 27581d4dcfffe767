"""Interests as entries of a dictionary that follows the item space: GemiRec's IDMM and its posterior."""
