"""Sending requests: transport, retries and the rate limiter."""
