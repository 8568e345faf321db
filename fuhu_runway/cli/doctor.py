"""The command that checks a gateway: at no cost, or with one clip."""

import asyncio
import os
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Final

import attrs
from cyclopts import Parameter

from fuhu_runway.errors import UsageError
from fuhu_runway.models import usage_error

from .console import RESULT, Screen, number
from .make import open_command
from .options import IN_RESULT, WHOLE, Access, Saving, Target
from .output import complain, one_line

if TYPE_CHECKING:
    from fuhu_runway.doctor import FirstClip, Report, Transcript

FILE: Final = Path("first-clip.mp4")
"""Where the clip is saved by default: a second one is refused before it is paid for."""


@Parameter(name="*", group=RESULT)
@attrs.frozen(kw_only=True)
class FirstClipSaving(Saving):
    """
    Where the first clip is saved.

    Args:
        output_file: File to save the clip in; by default first-clip.mp4.
    """

    output_file: Annotated[Path | None, Parameter(name=("--output", "-o"), show_default=False)] = (
        FILE
    )


async def doctor(
    *,
    spend: Annotated[int | None, WHOLE] = None,
    record: Annotated[Path | None, IN_RESULT] = None,
    saving: FirstClipSaving = FirstClipSaving(),
    screen: Screen = Screen(),
    access: Access = Access(),
) -> int:
    """
    Check that the key, the address and the gateway fit together, and say what to change if not.

    Free, unless --spend is given: it polls a task that cannot exist, and requests the balance.

    Args:
        spend: If a clip can be made, pay for this many: only 1 is allowed, of five seconds.
        record: File for a transcript of the replies, without secrets, to send to a developer.
    """
    from fuhu_runway import doctor as library

    if spend not in {None, 1}:
        raise usage_error("spend", "--spend makes one clip and no more.", "Use --spend 1.")
    if spend:
        saving.check(None)
    if record is not None:
        library.check_free(record, overwrite=saving.force)
    transcript = library.Transcript()
    code = 5
    try:
        report = await _examined(access, transcript, screen)
        screen.out(*_lines(report))
        code = 0 if report.fits and report.is_ready else 5
        clip = None
        if spend and report.is_ready:
            clip = await _make_clip(saving, access, screen, transcript)
        elif spend:
            screen.say("No clip was submitted: fix what does not fit, and run this command again.")
        findings = [
            {**attrs.asdict(finding), "verdict": finding.verdict.value}
            for finding in report.findings
        ]
        row = {"fits": report.fits, "is_ready": report.is_ready, "findings": findings}
        screen.show(
            {**row, "clip": clip and attrs.asdict(clip)}, *([_clip_line(clip)] if clip else [])
        )
    finally:
        if record is not None and not _save(transcript, record, saving, screen):
            code = 5
    return code


async def _examined(access: Access, transcript: "Transcript", screen: Screen) -> "Report":
    from fuhu_runway.doctor import examine

    key = os.environ.get("FUHU_API_KEY", "") if access.api_key_file is None else access.key()
    url, gateway = access.base_url, access.gateway
    try:
        return await examine(key, base_url=url, gateway=gateway, transcript=transcript)
    except asyncio.CancelledError:
        screen.stop("Nothing was submitted.")
        raise


def _save(transcript: "Transcript", record: Path, saving: Saving, screen: Screen) -> bool:
    """Save the transcript; if that fails, an error of the clip matters more."""
    try:
        transcript.save(record, overwrite=saving.force)
    except UsageError as error:
        complain(str(error))
        return False
    screen.info(f"recorded: {record}")
    return True


async def _make_clip(
    saving: Saving, access: Access, screen: Screen, transcript: "Transcript"
) -> "FirstClip":
    from fuhu_runway.doctor import first_clip

    async with open_command(screen, Target(access=access), saving) as running:
        running.is_submitting = True
        screen.stage("submitting")
        return await first_clip(
            running.client,
            path=saving.output_file,
            overwrite=saving.force,
            timeout=saving.timeout,
            transcript=transcript,
            on_accepted=running.accept,
        )


def _lines(report: "Report") -> Iterator[str]:
    """Yield a line for each check, and one for all that were skipped."""
    made = [finding for finding in report.findings if not finding.is_skipped]
    width = max(len(finding.verdict.value) for finding in made)
    for finding in made:
        start = f"{finding.verdict.value:<{width}}  {finding.about:<7}  "
        yield one_line(f"{start}{finding.found}")
        if finding.advice:
            yield f"{'':<{len(start)}}{one_line(finding.advice)}"
    skipped = ", ".join(finding.about for finding in report.findings if finding.is_skipped)
    if skipped:
        yield f"Skipped because of the findings above: {skipped}"


def _clip_line(clip: "FirstClip") -> str:
    cost = f"{number(clip.points, 'an unknown number of')} points"
    took = f"Made in {clip.seconds:,.1f} s for {cost}; polls: {clip.polls:,}"
    return one_line(f"clip: {took}; {clip.host}; saved as {clip.path}")
