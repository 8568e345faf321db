"""
Where the clips of a batch are saved: a folder, or an object store.

Rule 1: a place that cannot be used is found before anything is paid for, as far as possible.
Rule 2: a job is saved once its whole clip is in its place; a clip that is being uploaded is not.
Rule 3: the name of a clip depends on its job only, so that two workers write the same bytes.
"""

import asyncio
import importlib
import os
import tempfile
from abc import ABC, abstractmethod
from pathlib import Path
from typing import TYPE_CHECKING, Any

import attrs

from ._clip_files import MARK_LENGTH, check_clip_path, clip_folder, is_url
from ._sinks import PAID_FOR
from .errors import DownloadIncomplete, UsageError
from .journal import Plan
from .models import usage_error
from .paths import beside, saved_place
from .task import Clip, saved_beside
from .uploads import ClipStore, StoreError

if TYPE_CHECKING:
    from collections.abc import Mapping


class Place(ABC):
    """Where the clips of a batch are saved; methods return fields of an `Outcome`."""

    @abstractmethod
    async def open(self) -> None:
        """Raise a `UsageError` if no clip can be saved here."""

    @abstractmethod
    async def check(self, name: str, plan: Plan, *, overwrite: bool) -> None:
        """Raise a `UsageError` if the clip of a job cannot be saved here."""

    @abstractmethod
    async def found(self, name: str, task_id: str, size: int | None) -> "Mapping[str, Any] | None":
        """Return where the clip is that was saved for a task; None if it is gone or has changed."""

    @abstractmethod
    async def save(self, clip: Clip, name: str, *, overwrite: bool) -> "Mapping[str, Any]":
        """Save the clip under its name, or beside another file, and return where it is."""


@attrs.frozen
class Folder(Place):
    """A folder that exists."""

    path: Path
    #: The lengths of names that were tried.
    _tested: set[tuple[int, int]] = attrs.field(init=False, factory=set)

    async def open(self) -> None:
        pass  # it was checked when it was made

    async def check(self, name: str, plan: Plan, *, overwrite: bool) -> None:
        check_clip_path(self.path / name, plan, self._tested, overwrite=overwrite)

    async def found(self, name: str, task_id: str, size: int | None) -> "Mapping[str, Any] | None":
        place = await asyncio.to_thread(saved_place, self.path / name, task_id, size)
        return None if place is None else {"path": place}

    async def save(self, clip: Clip, name: str, *, overwrite: bool) -> "Mapping[str, Any]":
        path = self.path / name
        # A link exists even if its target does not.
        if overwrite or not (path.exists() or path.is_symlink()):
            return {"path": await clip.download(path, overwrite=overwrite)}
        return {"path": await saved_beside(clip, path)}


@attrs.frozen
class Bucket(Place):
    """An object store. A clip is saved and verified in a temporary folder, and then put there."""

    store: ClipStore

    async def open(self) -> None:
        try:
            await self.store.check_access()
        except StoreError as fault:
            raise _unusable(fault) from None

    async def check(self, name: str, plan: Plan, *, overwrite: bool) -> None:
        try:
            if overwrite or await self.store.clip_size(name) is None:
                return
        except StoreError as fault:
            raise _unusable(fault) from None
        # The text before the mark is the prompt.
        mark = plan.key[:MARK_LENGTH]
        shown = name if plan.custom_id else f"*-{mark}{name.partition(mark)[2]}"
        raise usage_error(
            "download_to",
            f"There is an object {shown!r} already, which was not saved for this job.",
            "Move it, or allow it to be replaced (overwrite=True, or --overwrite).",
        )

    async def found(self, name: str, task_id: str, size: int | None) -> "Mapping[str, Any] | None":
        try:
            for place in (name, beside(Path(name), task_id).name):
                if size is not None and await self.store.clip_size(place) == size:
                    return {"object_url": self.store.clip_url(place)}
        except StoreError as fault:
            raise _incomplete(fault, task_id) from None
        return None

    async def save(self, clip: Clip, name: str, *, overwrite: bool) -> "Mapping[str, Any]":
        place = name

        async def put(file: Path) -> None:
            nonlocal place
            try:
                if not overwrite and await self.store.clip_size(name) is not None:
                    if await self.store.has_clip(name, file):
                        return  # another worker put it there, or one that was killed right after
                    place = beside(Path(name), clip.id).name
                await self.store.put_clip(place, file)
            except StoreError as fault:
                raise _incomplete(fault, clip.id) from None

        try:
            folder = tempfile.TemporaryDirectory(prefix="fuhu-runway-", ignore_cleanup_errors=True)
        except OSError as error:
            raise _incomplete(
                StoreError(
                    f"There is no room for temporary files ({os.strerror(error.errno or 0)}).",
                    "Free some space, or set TMPDIR to a folder on another disk.",
                ),
                clip.id,
            ) from error
        with folder:
            await clip.pass_on(Path(folder.name) / "clip.mp4", put)
        return {"object_url": self.store.clip_url(place)}


def place_of(download_to: "str | os.PathLike[str] | ClipStore | None") -> Place | None:
    """
    Return the place for the clips of a batch; a folder is created if its parent exists.

    Raises:
        UsageError: It is not a place for clips, or nothing can be written in the folder.
    """
    if download_to is None:
        return None
    if isinstance(download_to, str) and is_url(download_to):
        try:
            module = importlib.import_module("fuhu_runway.contrib.store")
        except ImportError as missing:
            raise usage_error(
                "download_to",
                "An object store needs the extra store.",
                'Install it; in a checkout: python -m pip install ".[store]"',
            ) from missing
        return Bucket(module.ObjectStore.from_url(download_to))
    if isinstance(download_to, str | os.PathLike):
        return Folder(clip_folder(download_to))
    return Bucket(download_to)


def _unusable(fault: StoreError) -> UsageError:
    return usage_error("download_to", fault.happened, fault.advice)


def _incomplete(fault: StoreError, task_id: str) -> DownloadIncomplete:
    return DownloadIncomplete(fault.happened, PAID_FOR, fault.advice, task_id)
