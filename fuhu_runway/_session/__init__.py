"""The work of a client: its sessions, the paid path, names and webhooks."""
