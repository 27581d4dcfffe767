"""[torchrec] Features to vectors: tables, lookups, key-jagged batches. Authored unsharded."""
