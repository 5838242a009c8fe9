"""Studies, diagnoses, and what one seed of a task needs."""
