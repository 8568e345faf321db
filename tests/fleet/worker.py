"""
A process whose children are workers of a fleet; the test kills and freezes them.

A forked child starts with everything imported, so that hundreds of workers take seconds.
"""

import asyncio
import json
import logging
import os
import signal
import sys
from pathlib import Path
from typing import Any

from fuhu_runway import Limits, PollPolicy, RetryPolicy
from fuhu_runway.contrib.fleet import RESTART_CODE, Fleet, LeaseExpired


def work(options: dict[str, Any]) -> int:
    """Work until the process is killed or told to stop, and return its exit code."""
    logging.basicConfig(
        filename=Path(options["folder"]) / "workers.log",
        level=logging.DEBUG,
        format=f"{os.getpid()} %(asctime)s %(name)s %(message)s %(args)s",
    )
    logging.getLogger("asyncio").setLevel(logging.WARNING)
    fleet = Fleet(
        options["url"],
        download_to=Path(options["folder"]) / "clips",
        lease=options["lease"],
        limits=Limits(requests_per_second=options["rate"]),
        polling=PollPolicy(first=0.2, max_interval=0.3),
        retry=RetryPolicy(first=0.05, max_delay=0.5),
    )
    try:
        asyncio.run(fleet.work(in_flight=options["in_flight"], grace=options["grace"]))
    except LeaseExpired:
        return RESTART_CODE
    return 0


def main(options: dict[str, Any]) -> None:
    """Start a worker for each line of stdin, and write its process id."""
    signal.signal(signal.SIGCHLD, signal.SIG_IGN)  # the children need no wait()
    for _ in sys.stdin:
        child = os.fork()
        if child == 0:
            signal.signal(signal.SIGCHLD, signal.SIG_DFL)
            code = 1
            try:
                code = work(options)
            except BaseException:
                logging.getLogger(__name__).exception("The worker failed.")
            os._exit(code)
        os.write(1, f"{child}\n".encode())


if __name__ == "__main__":
    main(json.loads(sys.argv[1]))
