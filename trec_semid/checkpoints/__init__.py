"""[torch.distributed.checkpoint] Save and load, complete or invisible."""
