"""
The command that shows what a batch made, as one HTML page.

Rule 1: it sends nothing, and a running batch is not disturbed.
Rule 2: it replaces only a page that it wrote itself, unless --force is given.
"""

import json
import os
import re
from collections.abc import Mapping
from datetime import datetime
from pathlib import Path
from typing import Annotated, Any, Final
from urllib.parse import quote

from cyclopts import Parameter

from fuhu_runway._clip_files import MARK_LENGTH, file_name, mark_of_file
from fuhu_runway.journal import Job, JobState
from fuhu_runway.models import usage_error
from fuhu_runway.paths import write_whole

from .console import Screen
from .opening import readable
from .options import IN_RESULT, JOURNAL, OUT, JournalPlace, existing
from .page import MARK, Card, page

_MARK: Final = re.compile(rf"-[0-9a-f]{{{MARK_LENGTH}}}(-[0-9]+)?\.mp4$")
"""How the file of a clip without a name of the user's own ends."""

_SHOWN: Final = ("key", "prompt", "path", "money")
"""What the page shows of a line of results; it has the rest from the journal."""


async def report(
    folder: Path = OUT,
    /,
    *,
    journal: Annotated[JournalPlace | None, JOURNAL, IN_RESULT] = None,
    output_file: Annotated[Path | None, IN_RESULT, Parameter(name=("--output", "-o"))] = None,
    force: Annotated[bool, IN_RESULT] = False,
    screen: Screen = Screen(),
) -> None:
    """
    Write a page with the clips, prompts, points and times of a batch.

    Free, and sends nothing. The page needs no server and loads nothing from elsewhere; it plays
    the clips in the folder. It contains the prompts, and only you can read it (0600).

    Args:
        folder: Folder of a batch, such as clips.
        journal: Journal of the batch, or the URL of a database; by default journal.db in that
            folder.
        output_file: File for the page; by default report.html in that folder.
        force: Replace a file that is not such a page.
    """
    journal = existing(journal or folder / "journal.db")
    target = output_file or folder / "report.html"
    _check_target(target, force=force)
    async with readable(journal) as store:
        jobs = await store.jobs()
    results = _results(folder / "results.jsonl")
    files = {
        ending[0]: file for file in folder.glob("*.mp4") if (ending := _MARK.search(file.name))
    }
    cards = []
    for job in jobs:
        result = results.get(job.key, {})
        file = _file(job, result, folder, files)
        cards.append(
            Card(
                job=job,
                prompt=result.get("prompt"),
                money=result.get("money"),
                video=_relative(file, target.parent) if file else None,
            )
        )
    made_at = f"{datetime.now().astimezone():%Y-%m-%d %H:%M}"
    try:
        write_whole(target, page(f"Batch {folder.resolve().name}", cards, made_at))
    except OSError as error:
        happened = f"The page cannot be written ({error.strerror})."
        advice = "Name another file with --output."
        raise usage_error("output_file", happened, advice) from error
    screen.show({"file": str(target), "jobs": len(cards)}, str(target))
    if not results:
        screen.info("There are no results in results.jsonl, so the page has no prompts.")


def _results(path: Path) -> dict[str, Mapping[str, Any]]:
    """Return the last complete line of each job in a file of results, by its key."""
    try:
        lines = path.read_bytes().split(b"\n")[:-1]
        rows = [{name: json.loads(line).get(name) for name in _SHOWN} for line in lines]
        if not all(isinstance(value, str | None) for row in rows for value in row.values()):
            raise TypeError  # noqa: TRY301  (as for a line that cannot be parsed)
        return {row["key"]: row for row in rows if row["key"]}
    except FileNotFoundError:
        return {}
    except (OSError, ValueError, AttributeError, TypeError, RecursionError) as error:
        reason = getattr(error, "strerror", None) or "it is not a results file"
        raise usage_error(
            "folder", f"{path.name!r} cannot be read ({reason}).", "Move it out of the folder."
        ) from None  # the cause may quote the file


def _file(
    job: Job, result: Mapping[str, Any], folder: Path, files: Mapping[str, Path]
) -> Path | None:
    """Return the clip of a job, if it is in the folder; *files* has clips by their marks."""
    # The batch may have run in another working directory; its clips are in the folder.
    name = Path(result["path"]).name if result.get("path") else None
    if name is None and job.custom_id is not None:
        name = file_name(job.custom_id)
    if name is None:
        return files.get(mark_of_file(job.key)) if job.state is JobState.SAVED else None
    file = folder / name
    return file if file.is_file() else None


def _relative(file: Path, beside: Path) -> str | None:
    """Return the URL of *file* on a page in the folder *beside*."""
    try:
        return quote(os.fsencode(Path(os.path.relpath(file, beside)).as_posix()))
    except ValueError:  # on another drive of Windows
        return None


def _check_target(path: Path, *, force: bool) -> None:
    """Raise unless the page may be written, before anything is read."""
    if not path.parent.is_dir():
        happened = f"There is no folder {str(path.parent)!r}."
        raise usage_error("output_file", happened, "Create it first.")
    if not os.path.lexists(path):
        return
    try:
        with path.open("rb") as file:
            is_ours = file.read(len(MARK)) == MARK.encode()
    except OSError as error:
        happened = f"{path.name!r} cannot be replaced ({error.strerror})."
        raise usage_error("output_file", happened, "Use another name.") from error
    if not is_ours and not force:
        raise usage_error(
            "output_file",
            f"{path.name!r} exists, and is not a page that this command wrote.",
            "Use another name, or add --force.",
        )
