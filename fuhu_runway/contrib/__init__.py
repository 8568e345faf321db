"""Optional doors to other libraries: each module needs an extra, and nothing needs these."""
