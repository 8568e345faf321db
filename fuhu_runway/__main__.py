"""The entry point of the command `fuhu-runway`."""

import sys
from importlib.util import find_spec
from typing import NoReturn

from .cli.output import LOST, keep_standard_streams, write


def main() -> NoReturn:
    """Run the command line and end the process with its exit code."""
    keep_standard_streams()
    if sys.argv[1:] in (
        ["--version"],
        ["-V"],
    ):  # without the time that importing the commands takes
        from importlib.metadata import version

        sys.exit(LOST if write(sys.stdout, version("fuhu-runway")) else 0)
    if not (find_spec("cyclopts") and find_spec("rich")):
        hint = 'The command line needs an extra; in a checkout: python -m pip install ".[cli]"'
        write(sys.stderr, hint)
        sys.exit(2)
    try:
        from .cli.app import main as run

        sys.exit(run())
    except KeyboardInterrupt:  # before the command began
        sys.exit(130)


if __name__ == "__main__":
    main()
