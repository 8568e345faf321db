"""Options for what happens to a paid task: where its clip is saved, and what is recorded."""

from pathlib import Path
from typing import Annotated, Final

import attrs
from cyclopts import Parameter

from fuhu_runway.models import DEFAULT_WAIT, usage_error

from .batch import STATE_NAME, check_target
from .options import POSITIVE, RESULT, Target

NAME_BYTES: Final = 60
"""How much of a prompt is in a file name, in bytes; more might leave no room for the id."""


@Parameter(name="*", group=RESULT)
@attrs.frozen(kw_only=True)
class Saving:
    """
    Where the clip is saved, and how long to wait for it.

    Args:
        output_file: File to save the clip in; by default named after the prompt and the task.
        force: Replace the file if it exists.
        timeout: How long to wait for the clip, in seconds.
    """

    output_file: Annotated[Path | None, Parameter(name=("--output", "-o"))] = None
    force: bool = False
    timeout: Annotated[float, POSITIVE] = DEFAULT_WAIT

    def check(self, prompt: str | None) -> None:
        """Raise unless the clip can be saved; called before it is paid for."""
        from fuhu_runway.paths import check_target

        # A default name contains the id, which is not known yet, so it cannot be taken.
        path = self.path(prompt, "task")
        check_target(path, overwrite=self.force or self.output_file is None)

    def path(self, prompt: str | None, task_id: str) -> Path:
        """Return where the clip of a task is saved."""
        from fuhu_runway._clip_files import encodable
        from fuhu_runway.paths import safe_name

        if self.output_file is not None:
            return self.output_file
        start = encodable(prompt or "clip").encode()[:NAME_BYTES].decode(errors="ignore")
        return Path(safe_name(f"{start}-{task_id}"))


SAVING: Final = Saving()


@Parameter(name="*", group=RESULT)
@attrs.frozen(kw_only=True)
class Submitting:
    """
    What happens to a task after it is submitted.

    Args:
        no_wait: Print the task's id as soon as the task is accepted, and do not wait for its clip.
        journal: Journal to record the task in; created if needed.
    """

    saving: Saving = SAVING
    no_wait: bool = False
    journal: Path | None = None

    def check(self, target: Target) -> None:
        """Raise if the task could not be continued, or the journal is a simulated gateway's."""
        if target.simulate and (self.no_wait or self.journal):
            raise usage_error(
                "simulate",
                "--simulate cannot be combined with --no-wait or --journal: its tasks end with "
                "the command.",
                "Remove it, or start a gateway with `fuhu-runway simulate`.",
            )
        if self.journal is not None:
            check_target(target, self.journal, self.journal.parent / STATE_NAME)


SUBMITTING: Final = Submitting()
