"""The protocol of the gateways, as tables and pure functions. No I/O."""
