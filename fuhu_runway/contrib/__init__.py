"""Optional integrations with other libraries; each module needs an extra."""
