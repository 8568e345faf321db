"""The programs of the pages that serve no HTTP, each run as the page says."""
