"""Methods of ranking, one file each."""
