"""Sending requests: transport, the rate limiter, and when a retry is safe."""
