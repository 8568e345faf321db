"""The command that checks a gateway: at no cost, or with one clip."""

import asyncio
import json
import os
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Final

import attrs
from cyclopts import Parameter

from fuhu_runway.errors import UsageError
from fuhu_runway.models import usage_error

from .console import Lines, complain, one_line, write
from .make import open_command
from .options import ACCESS, OUTPUT, RESULT, WHOLE, Access, Output, Screen, Target
from .saving import SAVING, Saving

if TYPE_CHECKING:
    from fuhu_runway.doctor import FirstClip, Report, Transcript

FILE: Final = Path("first-clip.mp4")
"""Where the clip is saved by default: a second one is refused before it is paid for."""


async def doctor(
    *,
    spend: Annotated[int | None, WHOLE] = None,
    record: Annotated[Path | None, Parameter(group=RESULT)] = None,
    saving: Saving = SAVING,
    output: Output = OUTPUT,
    access: Access = ACCESS,
    screen: Screen,
) -> int:
    """
    Check that the key, the address and the gateway fit together, and say what to change if not.

    Free, unless --spend is given: it polls a task that cannot exist, and requests the balance.
    With --spend 1, the clip is saved as first-clip.mp4, or as --output says.

    Args:
        spend: If a clip can be made, pay for this many: only 1 is allowed, of five seconds.
        record: File for a transcript of the replies, without secrets, to send to a developer.
    """
    from fuhu_runway import doctor as library

    if spend not in {None, 1}:
        raise usage_error("spend", "--spend makes one clip and no more.", "Use --spend 1.")
    saving = attrs.evolve(saving, output_file=saving.output_file or FILE)
    if spend:
        saving.check(None)
    if record is not None:
        library.check_free(record, overwrite=saving.force)
    transcript = library.Transcript()
    code = 5
    try:
        report = await _examined(access, transcript, screen)
        if not output.json:
            _print_findings(report)
        code = 0 if report.fits and report.is_ready else 5
        clip = None
        if spend and report.is_ready:
            clip = await _make_clip(saving, access, screen, transcript)
        elif spend:
            screen.say("No clip was submitted: fix what does not fit, and run this command again.")
        if output.json:
            _print_json(report, clip)
        elif clip is not None:
            _print_clip(clip)
    finally:
        if record is not None and not _save(transcript, record, saving, screen):
            code = 5
    return code


async def _examined(access: Access, transcript: "Transcript", screen: Lines) -> "Report":
    from fuhu_runway.doctor import examine

    key = os.environ.get("FUHU_API_KEY", "") if access.api_key_file is None else access.key()
    url, gateway = access.base_url, access.gateway
    try:
        return await examine(key, base_url=url, gateway=gateway, transcript=transcript)
    except asyncio.CancelledError:
        screen.stop("Nothing was submitted.")
        raise


def _save(transcript: "Transcript", record: Path, saving: Saving, screen: Lines) -> bool:
    """Save the transcript; if that fails, an error of the clip matters more."""
    try:
        transcript.save(record, overwrite=saving.force)
    except UsageError as error:
        complain(str(error))
        return False
    screen.info(f"recorded: {record}")
    return True


async def _make_clip(
    saving: Saving, access: Access, screen: Lines, transcript: "Transcript"
) -> "FirstClip":
    from fuhu_runway.doctor import first_clip

    async with open_command(screen, Target(access=access), saving) as running:
        running.is_submitting = True
        screen.stage("submitting")
        clip = await first_clip(
            running.client,
            path=saving.output_file,
            overwrite=saving.force,
            timeout=saving.timeout,
            transcript=transcript,
            on_accepted=running.accept,
        )
    screen.close()
    return clip


def _print_findings(report: "Report") -> None:
    """Print a line for each check, and one for all that were skipped."""
    made = [finding for finding in report.findings if not finding.is_skipped]
    width = max(len(finding.verdict.value) for finding in made)
    for finding in made:
        start = f"{finding.verdict.value:<{width}}  {finding.about:<7}  "
        write(sys.stdout, one_line(f"{start}{finding.found}"))
        if finding.advice:
            write(sys.stdout, f"{'':<{len(start)}}{one_line(finding.advice)}")
    skipped = ", ".join(finding.about for finding in report.findings if finding.is_skipped)
    if skipped:
        write(sys.stdout, f"Skipped because of the findings above: {skipped}")


def _print_clip(clip: "FirstClip") -> None:
    cost = "an unknown number of points" if clip.points is None else f"{clip.points:,g} points"
    took = f"Made in {clip.seconds:,.1f} s for {cost}; polls: {clip.polls:,}"
    write(sys.stdout, one_line(f"clip: {took}; {clip.host}; saved as {clip.path}"))


def _print_json(report: "Report", clip: "FirstClip | None") -> None:
    findings: list[dict[str, Any]] = [
        {**attrs.asdict(finding), "verdict": finding.verdict.value} for finding in report.findings
    ]
    row = {
        "fits": report.fits,
        "is_ready": report.is_ready,
        "findings": findings,
        "clip": None if clip is None else attrs.asdict(clip),
    }
    write(sys.stdout, json.dumps(row, default=str))
