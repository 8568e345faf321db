"""The control API of a running simulator, over HTTP."""
