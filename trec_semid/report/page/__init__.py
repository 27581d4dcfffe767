"""What stands on a report's page: its parts, tables and pictures."""
