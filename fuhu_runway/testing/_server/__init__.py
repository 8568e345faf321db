"""The server of the simulated gateway."""
