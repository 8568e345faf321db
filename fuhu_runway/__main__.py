"""The command `fuhu-runway`; without the extra that it needs, one line says which."""

import sys
from importlib.util import find_spec
from typing import NoReturn


def main() -> NoReturn:
    """Run the command line and end the process with its exit code."""
    if not (find_spec("cyclopts") and find_spec("rich")):
        print('The command line needs an extra: pip install "fuhu-runway[cli]"', file=sys.stderr)
        sys.exit(2)
    try:
        from .cli.app import main as run

        sys.exit(run())
    except KeyboardInterrupt:  # before the command began its work
        sys.exit(130)


if __name__ == "__main__":
    main()
