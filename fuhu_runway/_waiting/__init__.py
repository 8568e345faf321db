"""Everything that waits for tasks."""
