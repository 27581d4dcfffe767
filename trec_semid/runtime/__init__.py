"""What a running job stands on: its processes and how they end, its folders, what it says of itself."""
