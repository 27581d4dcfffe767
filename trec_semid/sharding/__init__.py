"""[torchrec] The only place with planner words: topology, constraints, plan, apply."""
