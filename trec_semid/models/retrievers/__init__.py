"""Methods of retrieval, one file each."""
