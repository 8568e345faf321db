"""Choose and check the names and paths of the clips of a batch."""

import errno
import hashlib
import os
import re
import sys
import unicodedata
from pathlib import Path
from typing import Final

import attrs

from ._part import note_path, part_path
from .errors import UsageError
from .journal import Plan
from .models import Generation, usage_error
from .paths import check_folder, check_target, safe_name

MARK_LENGTH: Final = 12
"""Hex digits of a hash in a file name. Of a million names, two are equal in one of 500 batches."""

_URL: Final = re.compile(r"[A-Za-z][A-Za-z0-9+.-]+://")


def is_url(place: str) -> bool:
    """Return whether a place for clips is a URL, and not the path of a folder."""
    return _URL.match(place) is not None


def clip_folder(folder: str | os.PathLike[str]) -> Path:
    """Return the folder, created if its parent exists; raise if files cannot be created in it."""
    try:
        return check_folder(Path(folder))
    except UsageError as error:
        raise attrs.evolve(error, field="download_to") from error.__cause__
    except (TypeError, ValueError) as unfit:
        reason = f"download_to is not a folder ({type(unfit).__name__})."
    raise usage_error("download_to", reason, "Use the path of a folder, or None.")


def clip_name(request: Generation, plan: Plan) -> str:
    """Return the name of a clip: readable, unique in the batch, and the same in every run."""
    if plan.custom_id is not None or ":" not in plan.key:
        return file_name(plan.custom_id or plan.key)
    text = getattr(request, "prompt", None) or plan.endpoint
    return safe_name(encodable(text), mark_of_file(plan.key))


def mark_of_file(key: str) -> str:
    """Return how the name of a clip's file ends, if it begins with the prompt."""
    fingerprint, _, times = key.partition(":")
    again = "" if times == "1" else f"-{times}"
    return f"-{fingerprint[:MARK_LENGTH]}{again}.mp4"


def check_clip_path(
    path: Path, plan: Plan, tested: set[tuple[int, int]], *, overwrite: bool
) -> None:
    """
    Raise unless a clip can be saved at *path*; called before it is paid for.

    *tested* holds the lengths of names, in characters and bytes, for which files could be created.
    """
    if not path.parent.is_dir():
        raise usage_error("download_to", "The folder for the clips is gone.", "Make it again.")
    is_there = os.path.lexists(path)
    if is_there and (not overwrite or path.is_dir()):
        mark = plan.key[:MARK_LENGTH]
        # The text before the mark is the prompt.
        name = path.name if plan.custom_id else f"*-{mark}{path.name.partition(mark)[2]}"
        raise usage_error(
            "download_to",
            f"There is a file {name!r} already, which was not saved for this job.",
            "Move it, or allow it to be replaced (overwrite=True, or --overwrite).",
        )
    lengths = (len(path.name), len(os.fsencode(path.name)))
    # The test creates and removes two files, as slow as a row of the journal. Its result depends on
    # the folder, the length of the name, and files that are in the way.
    places = (part_path(path), note_path(path))
    if lengths in tested and not is_there and not any(map(os.path.lexists, places)):
        return
    try:
        check_target(path, overwrite=True)
    except UsageError as unfit:
        reason = os.strerror(getattr(unfit.__cause__, "errno", None) or errno.EINVAL)
    else:
        tested.add(lengths)
        return
    raise usage_error(  # outside the clause, since the name there is the prompt
        "download_to",
        f"The clip cannot be saved in its place ({reason}).",
        "Choose a folder with a shorter path, or correct what is in the way.",
    )


def file_name(custom_id: str) -> str:
    """
    Return the name of a clip's file, different for each id.

    Two ids may become equal once they are made safe, or on a disk that ignores case or how a
    letter is composed. Such an id is marked with a hash.
    """
    name = safe_name(custom_id)
    folded = unicodedata.normalize("NFC", name.upper().casefold())
    if name == f"{custom_id}.mp4" == encodable(name) == folded:
        return name
    mark = hashlib.sha256(custom_id.encode("utf-8", "surrogatepass")).hexdigest()
    return safe_name(encodable(custom_id), f"-{mark[:MARK_LENGTH]}.mp4")


def encodable(text: str) -> str:
    """Return *text* without characters that file names cannot have in this locale."""
    encoding = sys.getfilesystemencoding()
    return text.encode(encoding, "ignore").decode(encoding)
