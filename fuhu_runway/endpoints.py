"""One method for each endpoint: `Endpoints`, which a `Client` inherits, and `Official`."""

from collections.abc import Mapping
from typing import Any, TypedDict

from ._arguments import check
from ._media import Media
from ._session.sessions import Sessions
from .errors import without_frames
from .models import (
    DEFAULT_MODEL,
    ActOne,
    Aleph,
    Balance,
    Generation,
    ImageToVideo,
    MotionVector,
    OfficialCharacterPerformance,
    OfficialImageToVideo,
    OfficialRequest,
    OfficialTextToVideo,
    OfficialVideoToVideo,
    OfficialVideoUpscale,
    TaskRecord,
    TextToVideo,
    VideoToVideo,
    usage_error,
)
from .task import Task


class PromptOptions(TypedDict, total=False):
    """What `Client.run` and `Client.generate` take in addition to a prompt; see `ImageToVideo`."""

    image: str | None
    last_image: str | None
    image_as_end_frame: bool
    flip: bool
    ratio: str
    seconds: int
    model: str
    style: str
    motion: MotionVector | None
    extra: dict[str, Any] | None


class Endpoints:
    """The methods of a `Client` that send one request and return what the gateway says."""

    _sessions: Sessions

    @without_frames
    async def submit(
        self, request: Generation, *, custom_id: str | None = None, tag: str | None = None
    ) -> Task:
        """
        Submit a request of any kind and return its task.

        Spends points as soon as the gateway accepts it. It is retried only if it provably was not
        accepted; if that is unknown, `SubmissionInDoubt` is raised and nothing is sent again. If
        the caller is cancelled while the request is in flight, the request goes on and its task
        appears in `unfinished`.

        Args:
            request: What to make.
            custom_id: Your own name for it, such as an order number. The same name is the same
                task: a second submit under it, even at the same time, returns the first one's
                task and sends nothing; with a journal, even after a restart.
            tag: Your own text, passed on with the task to events, `unfinished` and the journal.

        Returns:
            The task; `await task.wait()` returns the clip.

        Raises:
            UsageError: An argument is wrong, or the client is closed; nothing was sent.
            InvalidRequest: The gateway refused the arguments; nothing was charged.
            Unauthorized: The key is not allowed to do this; nothing was charged.
            OutOfCredits: There is not enough left; nothing was charged.
            RateLimited: Refused until the retry policy gave up; nothing was charged.
            ModelUnavailable: No channel offers the model; nothing was charged.
            NotSent: The gateway could not be reached; nothing was charged.
            UploadFailed: A local file could not be uploaded; nothing was charged.
            NotFound: The gateway does not have this route; nothing was charged.
            SubmissionInDoubt: The request was sent and its fate is unknown: this one, or an
                earlier one under this name.
            JournalError: The journal cannot be used; nothing was sent.
        """
        return await self._sessions.submit(request, custom_id=custom_id, tag=tag)

    @without_frames
    async def generate(
        self,
        prompt: str,
        *,
        image: Media | None = None,
        last_image: Media | None = None,
        image_as_end_frame: bool = False,
        flip: bool = False,
        ratio: str = "16:9",
        seconds: int = 10,
        model: str = DEFAULT_MODEL,
        style: str = "cinematic",
        motion: MotionVector | None = None,
        extra: dict[str, Any] | None = None,
        custom_id: str | None = None,
        tag: str | None = None,
    ) -> Task:
        """
        Submit a prompt, or a picture and a prompt, and return the task; costs the same as `submit`.

        Arguments as in `TextToVideo`, or with *image*, the first frame, as in `ImageToVideo`;
        *last_image*, *image_as_end_frame* and *flip* need an image.
        """
        request = prompted(
            prompt,
            image=image,
            last_image=last_image,
            image_as_end_frame=image_as_end_frame,
            flip=flip,
            ratio=ratio,
            seconds=seconds,
            model=model,
            style=style,
            motion=motion,
            extra=extra,
        )
        return await self._sessions.submit(request, custom_id=custom_id, tag=tag)

    @without_frames
    async def video_to_video(
        self,
        video: Media,
        prompt: str,
        *,
        structure_transformation: float = 0.5,
        seconds: int | None = 5,
        flip: bool = False,
        model: str = DEFAULT_MODEL,
        extra: dict[str, Any] | None = None,
        custom_id: str | None = None,
        tag: str | None = None,
    ) -> Task:
        """
        Submit a video to be restyled; costs the same as `submit`.

        Arguments as in `VideoToVideo`.
        """
        request = VideoToVideo(
            video,
            prompt,
            structure_transformation=structure_transformation,
            seconds=seconds,
            flip=flip,
            model=model,
            extra=extra,
        )
        return await self._sessions.submit(request, custom_id=custom_id, tag=tag)

    @without_frames
    async def act_one(
        self,
        video: Media,
        image: Media | None = None,
        *,
        character_video: Media | None = None,
        motion_multiplier: int | None = None,
        flip: bool | None = None,
        extra: dict[str, Any] | None = None,
        custom_id: str | None = None,
        tag: str | None = None,
    ) -> Task:
        """
        Submit a performance for a character; costs the same as `submit`.

        Arguments as in `ActOne`.
        """
        request = ActOne(
            video,
            image,
            character_video=character_video,
            motion_multiplier=motion_multiplier,
            flip=flip,
            extra=extra,
        )
        return await self._sessions.submit(request, custom_id=custom_id, tag=tag)

    @without_frames
    async def aleph(
        self,
        video: Media,
        prompt: str,
        *,
        image: Media | None = None,
        seconds: int = 5,
        extra: dict[str, Any] | None = None,
        custom_id: str | None = None,
        tag: str | None = None,
    ) -> Task:
        """
        Submit a video to be edited by Aleph; costs the same as `submit`.

        Arguments as in `Aleph`.
        """
        request = Aleph(video, prompt, image=image, seconds=seconds, extra=extra)
        return await self._sessions.submit(request, custom_id=custom_id, tag=tag)

    @without_frames
    async def feed(self, task_id: str, *, official: bool = False) -> TaskRecord:
        """
        Poll a task once and return what the gateway says; free. Arguments as in `task`.

        Raises:
            UsageError: The id is empty.
            GatewayError: The gateway refuses; `NotFound` right after a submit may be temporary.
            TransportError: It cannot be reached, after all retries.
            UnreadableReply: No known dialect fits the response.
        """
        check(official=official)
        return await self._sessions.record_of(task_id, official=official)

    @without_frames
    async def balance(self) -> Balance:
        """
        Return what is left to spend, in the gateway's unit; free.

        Raises:
            GatewayError: The gateway refuses, or does not have this route.
            TransportError: It cannot be reached.
            UnreadableReply: No known dialect fits the response.
        """
        return await self._sessions.balance()


class Official:
    """
    The official Runway format, as the same gateways offer it.

    Its tasks are polled at URLs of their own: use the task that the submit returned, or
    `client.official.task(id)`.
    """

    def __init__(self, sessions: Sessions) -> None:
        self._sessions = sessions

    @without_frames
    async def text_to_video(
        self,
        prompt: str,
        *,
        model: str = "gen4.5",
        ratio: str = "1280:720",
        seconds: int = 10,
        audio: bool | None = None,
        seed: int | None = None,
        extra: dict[str, Any] | None = None,
        custom_id: str | None = None,
        tag: str | None = None,
    ) -> Task:
        """
        Submit a prompt and return the task.

        Costs and errors as in `Client.submit`, arguments as in `OfficialTextToVideo`.
        """
        request = OfficialTextToVideo(
            prompt,
            model=model,
            ratio=ratio,
            seconds=seconds,
            audio=audio,
            seed=seed,
            extra=extra,
        )
        return await self._sessions.submit(request, custom_id=custom_id, tag=tag)

    @without_frames
    async def image_to_video(
        self,
        image: Media,
        prompt: str | None = None,
        *,
        last_image: Media | None = None,
        model: str = "gen4_turbo",
        ratio: str = "1280:720",
        seconds: int = 10,
        audio: bool | None = None,
        seed: int | None = None,
        watermark: bool | None = None,
        extra: dict[str, Any] | None = None,
        custom_id: str | None = None,
        tag: str | None = None,
    ) -> Task:
        """
        Submit a picture and return the task.

        Costs and errors as in `Client.submit`, arguments as in `OfficialImageToVideo`.
        """
        request = OfficialImageToVideo(
            image,
            prompt,
            last_image=last_image,
            model=model,
            ratio=ratio,
            seconds=seconds,
            audio=audio,
            seed=seed,
            watermark=watermark,
            extra=extra,
        )
        return await self._sessions.submit(request, custom_id=custom_id, tag=tag)

    @without_frames
    async def video_to_video(
        self,
        video: Media,
        prompt: str,
        *,
        image: Media | None = None,
        model: str = "gen4_aleph",
        ratio: str | None = "1280:720",
        seed: int | None = None,
        extra: dict[str, Any] | None = None,
        custom_id: str | None = None,
        tag: str | None = None,
    ) -> Task:
        """
        Submit a video to be edited and return the task.

        Costs and errors as in `Client.submit`, arguments as in `OfficialVideoToVideo`.
        """
        request = OfficialVideoToVideo(
            video,
            prompt,
            image=image,
            model=model,
            ratio=ratio,
            seed=seed,
            extra=extra,
        )
        return await self._sessions.submit(request, custom_id=custom_id, tag=tag)

    @without_frames
    async def character_performance(
        self,
        video: Media,
        image: Media | None = None,
        *,
        character_video: Media | None = None,
        body_control: bool | None = None,
        expression_intensity: int | None = None,
        model: str = "act_two",
        ratio: str = "1280:720",
        seed: int | None = None,
        extra: dict[str, Any] | None = None,
        custom_id: str | None = None,
        tag: str | None = None,
    ) -> Task:
        """
        Submit a performance for a character and return the task.

        Costs and errors as in `Client.submit`, arguments as in `OfficialCharacterPerformance`.
        """
        request = OfficialCharacterPerformance(
            video,
            image,
            character_video=character_video,
            body_control=body_control,
            expression_intensity=expression_intensity,
            model=model,
            ratio=ratio,
            seed=seed,
            extra=extra,
        )
        return await self._sessions.submit(request, custom_id=custom_id, tag=tag)

    @without_frames
    async def video_upscale(
        self,
        video: Media,
        *,
        model: str = "upscale_v1",
        extra: dict[str, Any] | None = None,
        custom_id: str | None = None,
        tag: str | None = None,
    ) -> Task:
        """
        Submit a video to be made larger and return the task.

        Costs and errors as in `Client.submit`, arguments as in `OfficialVideoUpscale`.
        """
        request = OfficialVideoUpscale(video, model=model, extra=extra)
        return await self._sessions.submit(request, custom_id=custom_id, tag=tag)

    @without_frames
    async def submit(
        self,
        path: str,
        body: Mapping[str, Any],
        *,
        custom_id: str | None = None,
        tag: str | None = None,
    ) -> Task:
        """
        Submit any request for a video by its path and body, and return the task.

        For what has no method yet: it is sent at most once, recorded in the journal, waited for and
        saved as any other. Costs and errors as in `Client.submit`, arguments as in
        `OfficialRequest`.
        """
        request = OfficialRequest(path, body)
        return await self._sessions.submit(request, custom_id=custom_id, tag=tag)

    def task(self, task_id: str) -> Task:
        """Return a handle on an official task; see `Client.task`."""
        return self._sessions.task(task_id, official=True)

    @without_frames
    async def feed(self, task_id: str) -> TaskRecord:
        """Poll an official task once; see `Client.feed`."""
        return await self._sessions.record_of(task_id, official=True)


def prompted(
    prompt: str,
    *,
    image: Media | None = None,
    last_image: Media | None = None,
    image_as_end_frame: bool = False,
    flip: bool = False,
    motion: MotionVector | None = None,
    extra: dict[str, Any] | None = None,
    **common: Any,
) -> Generation:
    """Return the request for a prompt, with a picture or without."""
    common |= {
        "motion": MotionVector() if motion is None else motion,
        "extra": extra,
    }
    if image is not None:
        return ImageToVideo(
            prompt,
            image,
            last_image=last_image,
            image_as_end_frame=image_as_end_frame,
            flip=flip,
            **common,
        )
    if last_image is not None or image_as_end_frame or flip:
        raise usage_error(
            "image",
            "last_image, image_as_end_frame and flip need an image.",
            "Pass the image, or leave them out: this would be charged as text to video.",
        )
    return TextToVideo(prompt, **common)
