"""Optional integrations with other programs and libraries; most modules need an extra."""
