"""What one client holds in one event loop."""
