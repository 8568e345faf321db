"""Control of a running simulator over HTTP."""
