"""What a user holds: `Client`, with one method for each thing that the gateway can be asked."""

import asyncio
import itertools
import os
from collections import Counter
from collections.abc import AsyncGenerator, Iterable
from contextlib import aclosing
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING, Any, Final, Self
from weakref import WeakValueDictionary

import aiohttp

from . import background
from . import hooks as events
from ._arguments import (
    KEY_VARIABLE,
    check,
    checked_callback,
    checked_key,
    checked_receiver,
    checked_session,
    resolved,
)
from ._clock import LoopClock
from ._session.session import Settings
from ._session.sessions import Sessions
from ._wire.decode import ask_balance, read_balance
from ._wire.tables import BALANCE_ENDPOINTS, ENDPOINTS, NOWHERE
from .background import BackgroundJob
from .batch import Batch, Outcome, Source
from .errors import discreet, discreetly_made
from .journal import Job, Journal
from .models import (
    DEFAULT_MODEL,
    DEFAULT_WAIT,
    ActOne,
    Balance,
    Gateway,
    Generation,
    ImageToVideo,
    Limits,
    MotionVector,
    OfficialImageToVideo,
    PollPolicy,
    RetryPolicy,
    TaskRecord,
    TextToVideo,
    Timeouts,
    VideoToVideo,
    usage_error,
)
from .task import Task

if TYPE_CHECKING:
    # It brings a web server along, which most programs have no use for.
    from .callbacks import CallbackReceiver

_NUMBERS: Final = itertools.count(1)


class Client:
    """
    The way to one gateway with one key: submits, looks, waits and saves.

    May be made anywhere, also outside of a running event loop, and used in several loops one
    after the other: each gets a session of its own, which is closed when its loop ends. Use it
    with `async with`, or call `aclose()`; after that it refuses every call in that loop, until it
    is entered again.

    Args:
        api_key: The key; by default the environment variable FUHU_API_KEY.
        base_url: Scheme and host of the gateway, and whatever path stands before its own; by
            default the environment variable FUHU_BASE_URL, then the gateway's own address.
        gateway: A `Gateway`, or the name of a known one, such as "deerapi"; by default FuhuAPI.
        session: A session to borrow in place of an own one; it is never closed here. It may not
            carry an Authorization header, which would reach the hosts of the clips.
        callback_url: Where the gateway posts its webhooks. By default an address that leads
            nowhere, since sister gateways refuse a request without one; None leaves it out.
        callbacks: Takes what the gateway posts: each submit is given an address of its own there
            in place of *callback_url*, and each delivery makes the task's waits look at once.
        timeouts: How long one exchange may take.
        retry: How often, and after how long, a safe request is repeated.
        polling: When a task is looked at.
        limits: How much of the gateway this client takes, in each event loop.
        journal: Where every submission is written down before it is sent, with its id and its
            outcome: a `Journal` that is shared and never closed here, or a path.
        hooks: Functions that are called with each event.

    Raises:
        UsageError: No key, or one that no header can carry; an address that is none; a gateway
            of unknown name. Nothing was sent.

    Source:
        api-facts 1.1 for the addresses, 1.2 and 4 for the callback.
    """

    @discreetly_made
    def __init__(
        self,
        api_key: str | None = None,
        *,
        # where
        base_url: str | None = None,
        gateway: Gateway | str | None = None,
        # how
        session: aiohttp.ClientSession | None = None,
        callback_url: str | None = NOWHERE,
        callbacks: "CallbackReceiver | None" = None,
        timeouts: Timeouts | None = None,
        retry: RetryPolicy | None = None,
        polling: PollPolicy | None = None,
        limits: Limits | None = None,
        # what is remembered
        journal: Journal | str | os.PathLike[str] | None = None,
        # who hears of it
        hooks: Iterable[events.Listener] = (),
    ) -> None:
        check(
            api_key=api_key,
            base_url=base_url,
            gateway=gateway,
            session=session,
            callback_url=callback_url,
            callbacks=callbacks,
            timeouts=timeouts,
            retry=retry,
            polling=polling,
            limits=limits,
            journal=journal,
        )
        settings = Settings(
            session=checked_session(session),
            timeouts=timeouts or Timeouts(),
            retry=retry or RetryPolicy(),
            polling=polling or PollPolicy(),
            limits=limits or Limits(),
            hooks=events.Hooks(hooks),
            clock=LoopClock(),
            client=next(_NUMBERS),
            net=None if callbacks is None else callbacks.safety_net,
        )
        self._sessions = Sessions(
            settings,
            resolved(gateway, base_url),
            checked_key(api_key or os.environ.get(KEY_VARIABLE)),
            callback_url=checked_callback(callback_url),
            callbacks=checked_receiver(callbacks, callback_url),
            journal=journal,
        )
        self._entered: Counter[asyncio.AbstractEventLoop] = Counter()
        self._jobs: WeakValueDictionary[str, BackgroundJob] = WeakValueDictionary()

    def __repr__(self) -> str:
        return repr(self._sessions)

    @property
    def gateway(self) -> Gateway:
        """Where requests go, and how they are written."""
        return self._sessions.gateway

    @property
    def journal(self) -> Journal | None:
        """The journal, where there is one."""
        return self._sessions.journal

    async def __aenter__(self) -> Self:
        loop = asyncio.get_running_loop()
        if loop in self._sessions.closed_in:
            await self.aclose()  # it may still be closing
            self._sessions.closed_in.discard(loop)
        self._entered[loop] += 1
        try:
            # Here, not at the first request: a server that cannot open its journal must not start.
            await self._sessions.recall()
        except BaseException:
            await self.__aexit__(None, None, None)
            raise
        return self

    async def __aexit__(
        self,
        exc_type: type[BaseException] | None,
        exc: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        loop = asyncio.get_running_loop()
        self._entered[loop] -= 1
        if self._entered[loop] <= 0:
            del self._entered[loop]
            await self.aclose()

    @property
    def official(self) -> "Official":
        """The official format of the same gateway."""
        return Official(self)

    async def aclose(self) -> None:
        """
        Close what this client opened in the running loop. Call it again at any time.

        From here on each call in this loop is refused, before anything is sent. Waits and
        downloads that are under way end with errors of their own, and their tasks go on at the
        gateway. A paid request in flight is waited for, for up to `Timeouts.total`, since only its
        answer holds the id of the task: cancelling this call does not cancel that. What is not
        finished then is in `unfinished`.
        """
        await self._sessions.aclose()

    def end_waits(self) -> None:
        """
        End every wait in the running loop with `WaitAbandoned`, without closing the client.

        For a server that shuts down: open streams of updates end, so that the shutdown can begin.
        Background jobs and batches wait as well, so theirs end too. The tasks go on at the
        gateway, and may be waited for again.
        """
        session = self._sessions.by_loop.get(asyncio.get_running_loop())
        if session is not None:
            session.poller.abandon()

    @property
    def unfinished(self) -> tuple[Task, ...]:
        """
        Every task that is paid for and not yet saved, handed out or known to have failed.

        An app that stops writes down their ids: `[task.id for task in client.unfinished]`. A task
        leaves the list when a wait returns its clip, unless that is being saved then; when its
        file is whole; and when it has failed. It stays whichever way its caller went: also if the
        caller was cancelled while the request was in flight, or let go of the handle. With a
        journal, the list begins with what earlier processes left. Good in any loop, before and
        after `aclose()`.
        """
        return self._sessions.unfinished

    # Paid calls

    @discreet
    async def submit(
        self, request: Generation, *, custom_id: str | None = None, tag: str | None = None
    ) -> Task:
        """
        Start one piece of work and return its handle: the one way in for every request.

        Spends points as soon as the gateway accepts it. Sent at most once: it is retried only
        where it provably was not accepted, and if that is not known, `SubmissionInDoubt` is
        raised and nothing is sent again. If the caller is cancelled while the request is in
        flight, the request goes on and its task appears in `unfinished`.

        Args:
            request: What to make.
            custom_id: Your own name for it, such as an order number. The same name is the same
                task: a second submit under it, also at the same time, returns the first one's
                task and sends nothing; with a journal, also after a restart.
            tag: Text of yours that travels with the task into events, `unfinished` and the
                journal.

        Returns:
            The task; `await task.wait()` returns the clip.

        Raises:
            UsageError: An argument is wrong, or the client is closed; nothing was sent.
            InvalidRequest: The gateway refused the arguments; nothing was charged.
            Unauthorized: The key may not do this; nothing was charged.
            OutOfCredits: There is not enough left; nothing was charged.
            RateLimited: Refused until the retry policy gave up; nothing was charged.
            ModelUnavailable: No channel offers the model; nothing was charged.
            NotSent: The gateway could not be reached; nothing was charged.
            NotFound: There is no such route, or a web page in its place; nothing was charged.
            SubmissionInDoubt: Sent, and its fate is unknown; now, or under this name before.
            JournalError: The journal cannot be used; nothing was sent.

        Source:
            api-facts 1.2 to 1.5, 5.1 and 5.2.
        """
        return await self._sessions.submit(request, custom_id=custom_id, tag=tag)

    async def start(
        self,
        work: Generation | Task | str,
        *,
        save: str | os.PathLike[str] | None = None,
        overwrite: bool = False,
        custom_id: str | None = None,
        tag: str | None = None,
        timeout: float | None = DEFAULT_WAIT,
    ) -> BackgroundJob:
        """
        Submit a request and follow it in the background; return as soon as it is accepted.

        For servers: a route starts the job and answers, while the client waits for the clip, saves
        it, and tries again for some minutes where saving it fails. Until the file is whole the
        task is in `unfinished`. Its end is a `JobEnded` event, and `await job` waits for it.
        Closing the client ends the following; the task goes on at the gateway.

        Spends points as `submit` does, with the same errors.

        Args:
            work: A request, a prompt, or a task that exists already, such as one of `unfinished`.
            save: The file to write; None saves none, and the clip is what `await job` returns. If
                the journal knows the name as paid and not saved, and there is a file, it may be
                the clip: it is compared, and a clip that differs is saved beside it.
            overwrite: Whether a file of that name may be replaced.
            custom_id: Your own name for it; the same name is the same task and is paid once.
            tag: Text of yours that travels with the job.
            timeout: How long to wait for the task, in seconds; None waits without limit.
        """
        check(save=save, overwrite=overwrite, timeout=timeout)
        return await background.start(
            self._sessions,
            TextToVideo(work) if isinstance(work, str) else work,
            path=None if save is None else Path(save),
            overwrite=overwrite,
            custom_id=custom_id,
            tag=tag,
            timeout=timeout,
            jobs=self._jobs,
        )

    async def find(self, custom_id: str) -> Task | None:
        """
        Return the task that was submitted under a name, here or by what the journal knows.

        Free, and sends nothing. None where there is no such task: nothing was submitted under the
        name, or it was refused, or it is in doubt.

        Raises:
            UsageError: The name is no text, or the client is closed.
            JournalError: The journal cannot be used.
        """
        return await self._sessions.find(custom_id)

    @discreet
    async def generate(
        self,
        prompt: str,
        *,
        # the picture, for image to video
        image: str | None = None,
        last_image: str | None = None,
        image_as_end_frame: bool = False,
        flip: bool = False,
        # the clip
        ratio: str = "16:9",
        seconds: int = 10,
        model: str = DEFAULT_MODEL,
        style: str = "cinematic",
        motion: MotionVector | None = None,
        # whatever else the gateway takes
        extra: dict[str, Any] | None = None,
        # what it is to you
        custom_id: str | None = None,
        tag: str | None = None,
    ) -> Task:
        """
        Start one clip from words, or from a picture and words, and give its handle.

        Spends points as soon as the gateway accepts it; sent at most once, as `submit` says.

        Args:
            prompt: What should be seen; any language.
            image: Address of the first frame; makes this image to video.
            last_image: Address of the last frame; with *image* only.
            image_as_end_frame: gen3: the picture is the end; with *image* only.
            flip: Portrait in place of landscape; with *image* only.
            ratio: Width to height, such as 16:9 or 1280:720.
            seconds: Length of the clip, in seconds; most models take 5 and 10.
            model: The model, such as gen4, gen4_turbo or gen3.
            style: The look.
            motion: How the camera moves.
            extra: Further fields for the request's body.
            custom_id: Your own name for it, as in `submit`: the same name is paid once.
            tag: Text of yours that travels with the task.

        Returns:
            The task; `await task.wait()` gives the clip.

        Raises:
            UsageError: An argument is wrong; nothing was sent.
            RunwayError: As `submit` says.

        Source:
            api-facts 1.2 and 1.3.
        """
        common: dict[str, Any] = {
            "ratio": ratio,
            "seconds": seconds,
            "model": model,
            "style": style,
            "motion": MotionVector() if motion is None else motion,
            "extra": {} if extra is None else extra,
        }
        if image is None:
            if last_image is not None or image_as_end_frame or flip:
                raise usage_error(
                    "image",
                    "last_image, image_as_end_frame and flip need an image, and none was given.",
                    "Give the image, or leave them out: this would be charged as text to video.",
                )
            return await self.submit(TextToVideo(prompt, **common), custom_id=custom_id, tag=tag)
        return await self.submit(
            ImageToVideo(
                prompt,
                image,
                last_image=last_image,
                image_as_end_frame=image_as_end_frame,
                flip=flip,
                **common,
            ),
            custom_id=custom_id,
            tag=tag,
        )

    @discreet
    async def video_to_video(
        self,
        video: str,
        prompt: str,
        *,
        structure_transformation: float = 0.5,
        seconds: int | None = 5,
        flip: bool = False,
        model: str = DEFAULT_MODEL,
        extra: dict[str, Any] | None = None,
        # what it is to you
        custom_id: str | None = None,
        tag: str | None = None,
    ) -> Task:
        """
        Start redrawing a clip in another style and give its handle.

        Spends points as soon as the gateway accepts it; sent at most once, as `submit` says.

        Args:
            video: Address of the clip, up to 10 s and 64 MB.
            prompt: The style to redraw it in.
            structure_transformation: From 0, which keeps the structure, to 1.
            seconds: Length of the clip, in seconds; None leaves it out.
            flip: Portrait in place of landscape.
            model: The model.
            extra: Further fields for the request's body.
            custom_id: Your own name for it, as in `submit`: the same name is paid once.
            tag: Text of yours that travels with the task.

        Returns:
            The task; `await task.wait()` gives the clip.

        Raises:
            UsageError: An argument is wrong; nothing was sent.
            RunwayError: As `submit` says.

        Source:
            api-facts 1.4.
        """
        return await self.submit(
            VideoToVideo(
                video,
                prompt,
                structure_transformation=structure_transformation,
                seconds=seconds,
                flip=flip,
                model=model,
                extra={} if extra is None else extra,
            ),
            custom_id=custom_id,
            tag=tag,
        )

    @discreet
    async def act_one(
        self,
        video: str,
        image: str | None = None,
        *,
        character_video: str | None = None,
        motion_multiplier: int | None = None,
        flip: bool | None = None,
        extra: dict[str, Any] | None = None,
        # what it is to you
        custom_id: str | None = None,
        tag: str | None = None,
    ) -> Task:
        """
        Start carrying a performance over to a character and give its handle.

        Spends points as soon as the gateway accepts it; sent at most once, as `submit` says.

        Args:
            video: Address of the performance; 16:9 only.
            image: Address of the character's picture; 16:9 only.
            character_video: Address of a clip of the character, in place of the picture.
            motion_multiplier: How strongly it moves, from 1 to 5.
            flip: Portrait in place of landscape.
            extra: Further fields for the request's body.
            custom_id: Your own name for it, as in `submit`: the same name is paid once.
            tag: Text of yours that travels with the task.

        Returns:
            The task; `await task.wait()` gives the clip.

        Raises:
            UsageError: An argument is wrong; nothing was sent.
            RunwayError: As `submit` says.

        Source:
            api-facts 1.5.
        """
        return await self.submit(
            ActOne(
                video,
                image,
                character_video=character_video,
                motion_multiplier=motion_multiplier,
                flip=flip,
                extra={} if extra is None else extra,
            ),
            custom_id=custom_id,
            tag=tag,
        )

    def batch(
        self,
        prompts: Source,
        *,
        in_flight: int = 20,
        download_to: str | os.PathLike[str] | None = None,
        timeout: float | None = DEFAULT_WAIT,
        max_points: float | None = None,
        retry_failed: bool = False,
        overwrite: bool = False,
    ) -> Batch:
        """
        Return a batch, to be run by iterating over its `outcomes()`; nothing is sent yet.

        Arguments as in `generate_many`; the batch has a `summary`, and can be stopped.

        Raises:
            UsageError: An argument is wrong, or nothing can be written to *download_to*.
        """
        check(
            in_flight=in_flight,
            download_to=download_to,
            timeout=timeout,
            max_points=max_points,
            retry_failed=retry_failed,
            overwrite=overwrite,
        )
        return Batch(
            self._sessions,
            prompts,
            in_flight=in_flight,
            journal=self.journal,
            download_to=download_to,
            timeout=timeout,
            max_points=max_points,
            retry_failed=retry_failed,
            overwrite=overwrite,
            clock=self._sessions.settings.clock,
        )

    async def generate_many(
        self,
        prompts: Source,
        *,
        in_flight: int = 20,
        download_to: str | os.PathLike[str] | None = None,
        timeout: float | None = DEFAULT_WAIT,
        max_points: float | None = None,
        retry_failed: bool = False,
        overwrite: bool = False,
    ) -> AsyncGenerator[Outcome, None]:
        """
        Yield the outcome of each of many jobs, as they end.

        Spends points for each job that the gateway accepts; each is submitted at most once, as
        `submit` says. With a journal (`Client(journal=...)`), the same call made again goes on
        where an earlier one was ended, by whatever ended it: what was accepted is followed, what
        is in doubt is reported, and neither is submitted again.

        Whatever goes wrong with one job is its outcome. A key that is refused, an account without
        points, a gateway that cannot be reached and a journal that is broken end the submitting;
        what was submitted is followed to its end, and `Batch.summary.stopped_by` says why. What
        the source raises is raised after that.

        Args:
            prompts: Prompts, requests, or an `Item` each, from any iterable or async iterable. It
                is read only as far as there is room for jobs.
            in_flight: How many jobs may exist at once; one whose outcome was not taken counts.
            download_to: The folder that clips are saved in, under names that read like their
                prompts; None saves none.
            timeout: How long to wait for each task, and then as long again for its file, in
                seconds; None waits without limit.
            max_points: Nothing more is submitted once this many points are spent or bound to be.
            retry_failed: Whether jobs that failed in an earlier run are submitted again.
            overwrite: Whether a file that stands in the place of a clip may be replaced. If not,
                such a job is not submitted, and its outcome says so.

        Raises:
            UsageError: An argument is wrong, or the source gave something that is no request.
            JournalError: The journal cannot be opened; nothing was sent.
        """
        batch = self.batch(
            prompts,
            in_flight=in_flight,
            download_to=download_to,
            timeout=timeout,
            max_points=max_points,
            retry_failed=retry_failed,
            overwrite=overwrite,
        )
        async with aclosing(batch.outcomes()) as outcomes:
            async for outcome in outcomes:
                yield outcome

    # Free calls

    def task(self, task_id: str, *, official: bool = False) -> Task:
        """
        Return a handle on a task that exists already, by its id alone; nothing is sent.

        Args:
            task_id: What `Task.id` was when it was submitted.
            official: Whether it was submitted in the official format.

        Raises:
            UsageError: The id is empty.
        """
        check(official=official)
        return self._sessions.task(task_id, official=official)

    def attach(self, job: Job) -> Task:
        """
        Return a handle on the task of a job that the journal lists; nothing is sent.

        Raises:
            UsageError: The job has no task.
        """
        return self._sessions.attach(job)

    @discreet
    async def feed(self, task_id: str, *, official: bool = False) -> TaskRecord:
        """
        Return what the gateway says about a task now, in one free look.

        Args:
            task_id: What `Task.id` was when it was submitted.
            official: Whether it was submitted in the official format.

        Raises:
            UsageError: The id is empty.
            NotFound: The gateway does not know the task, or not yet (api-facts 5.4).
            Unauthorized: The key may not ask.
            RateLimited: Refused until the retry policy gave up.
            NotSent: The gateway could not be reached.
            NoReply: It did not answer, however often it was asked.
            GatewayDown: It is in trouble.
            UnreadableReply: No known dialect fits the answer.

        Source:
            api-facts 1.6, 2 and 3.
        """
        check(official=official)
        return await self._sessions.record_of(task_id, official=official)

    @discreet
    async def balance(self) -> Balance:
        """
        Return what is left to spend, in the gateway's unit; free.

        Raises:
            GatewayError: The gateway says no, or has no such route.
            TransportError: It cannot be reached.
            UnreadableReply: No known dialect fits the answer.

        Source:
            api-facts 7; which route is asked is a part of the `Gateway`.
        """
        found: Balance | None = None
        transport = self._sessions.current().transport
        for name in BALANCE_ENDPOINTS[self.gateway.balance]:
            wire = ask_balance(ENDPOINTS[name], self.gateway, self._sessions.key)
            part = await transport.call(self._sessions.discreet(wire), read_balance)
            found = part if found is None else found.joined(part)
        assert found is not None  # noqa: S101  (every route has an endpoint)
        return found


class Official:
    """
    The official Runway format, as the same gateways offer it (api-facts 6).

    Its tasks live under addresses of their own: wait for them with the handle that the submit
    gave, or re-attach with `client.official.task(id)`.
    """

    def __init__(self, client: Client) -> None:
        self._client = client

    @discreet
    async def image_to_video(
        self,
        image: str,
        prompt: str | None = None,
        *,
        last_image: str | None = None,
        model: str = "gen4_turbo",
        ratio: str = "1280:720",
        seconds: int = 10,
        seed: int | None = None,
        watermark: bool | None = None,
        extra: dict[str, Any] | None = None,
        # what it is to you
        custom_id: str | None = None,
        tag: str | None = None,
    ) -> Task:
        """
        Start one clip from a picture in the official format and give its handle.

        Spends points as soon as the gateway accepts it; sent at most once, as `Client.submit`
        says.

        Args:
            image: The first frame: an https address, or a data URI.
            prompt: What should happen, up to 1000 characters.
            last_image: The last frame: an https address, or a data URI.
            model: The model, such as gen4_turbo.
            ratio: Width to height in pixels, such as 1280:720.
            seconds: Length of the clip, in seconds; gen4.5 takes 2 to 10.
            seed: The same seed and request give similar clips: 0 to 4294967295.
            watermark: Whether the clip carries a watermark; None leaves it to the gateway.
            extra: Further fields for the request's body.
            custom_id: Your own name for it, as in `submit`: the same name is paid once.
            tag: Text of yours that travels with the task.

        Returns:
            The task; `await task.wait()` gives the clip.

        Raises:
            UsageError: An argument is wrong; nothing was sent.
            RunwayError: As `Client.submit` says.

        Source:
            api-facts 6.
        """
        return await self._client.submit(
            OfficialImageToVideo(
                image,
                prompt,
                last_image=last_image,
                model=model,
                ratio=ratio,
                seconds=seconds,
                seed=seed,
                watermark=watermark,
                extra={} if extra is None else extra,
            ),
            custom_id=custom_id,
            tag=tag,
        )

    def task(self, task_id: str) -> Task:
        """
        Return a handle on an official task that exists already; nothing is sent.

        Raises:
            UsageError: The id is empty.
        """
        return self._client.task(task_id, official=True)

    async def feed(self, task_id: str) -> TaskRecord:
        """
        Return what the gateway says about an official task now, in one free look.

        Raises:
            RunwayError: As `Client.feed` says.

        Source:
            api-facts 6.
        """
        return await self._client.feed(task_id, official=True)
