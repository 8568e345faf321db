"""What `doctor` is made of: findings, probes of a gateway, and transcripts."""
