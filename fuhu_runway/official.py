"""The official Runway format of a client's gateway: one method for each endpoint."""

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from ._media import Media
from .errors import without_frames
from .models import (
    OfficialCharacterPerformance,
    OfficialImageToVideo,
    OfficialRequest,
    OfficialTextToVideo,
    OfficialVideoToVideo,
    OfficialVideoUpscale,
    TaskRecord,
)
from .task import Task

if TYPE_CHECKING:
    from .client import Client


class Official:
    """
    The official Runway format, as the same gateways offer it.

    Its tasks are polled at URLs of their own: use the task that the submit returned, or
    `client.official.task(id)`.
    """

    def __init__(self, client: "Client") -> None:
        self._client = client

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
            extra={} if extra is None else extra,
        )
        return await self._client.submit(request, custom_id=custom_id, tag=tag)

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
            extra={} if extra is None else extra,
        )
        return await self._client.submit(request, custom_id=custom_id, tag=tag)

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
            extra={} if extra is None else extra,
        )
        return await self._client.submit(request, custom_id=custom_id, tag=tag)

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
            extra={} if extra is None else extra,
        )
        return await self._client.submit(request, custom_id=custom_id, tag=tag)

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
        request = OfficialVideoUpscale(video, model=model, extra={} if extra is None else extra)
        return await self._client.submit(request, custom_id=custom_id, tag=tag)

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
        return await self._client.submit(request, custom_id=custom_id, tag=tag)

    def task(self, task_id: str) -> Task:
        """Return a handle on an official task; see `Client.task`."""
        return self._client.task(task_id, official=True)

    async def feed(self, task_id: str) -> TaskRecord:
        """Poll an official task once; see `Client.feed`."""
        return await self._client.feed(task_id, official=True)
