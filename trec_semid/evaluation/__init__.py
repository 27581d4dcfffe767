"""From predictions to tables and the report."""
