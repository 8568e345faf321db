"""Everything that sends."""
