"""The two sides of a fleet: the queue in the database, and the worker."""
