"""A name that people guess leads to an error that names the right one."""

import inspect
from typing import Any

import pytest

from fuhu_runway import (
    Client,
    Clip,
    ImageToVideo,
    OfficialImageToVideo,
    TaskRecord,
    TaskState,
    TextToVideo,
    VideoToVideo,
)
from fuhu_runway._guesses import METHODS
from fuhu_runway.errors import UsageError

IMAGE = "https://pictures.example/1.png"


@pytest.fixture
def client() -> Client:
    """Return a client that sends nothing."""
    return Client("sk-1", base_url="http://127.0.0.1:1")


@pytest.mark.parametrize(
    ("guess", "right"),
    [
        ("text_to_video", "generate"),
        ("image_to_video", "image=url"),
        ("create", "generate"),
        ("generate_video", "generate"),
        ("get_task", "task"),
        ("close", "aclose"),
    ],
)
def test_a_guessed_method_names_the_right_one(client: Client, guess: str, right: str) -> None:
    """The error is an `AttributeError`, so that `hasattr` stays right."""
    with pytest.raises(AttributeError, match=f"Client has no '{guess}'; use .*{right}"):
        getattr(client, guess)
    assert not hasattr(client, guess)


def test_no_guess_is_a_method(client: Client) -> None:
    """Each guess is wrong, and each name that it leads to is right."""
    for guess, right in METHODS.items():
        assert not hasattr(client, guess)
        assert hasattr(client, right.partition("(")[0])


def test_any_other_name_is_an_attribute_error_as_usual(client: Client) -> None:
    """With the name and the object, from which Python suggests a similar one."""
    with pytest.raises(AttributeError, match="'Client' object has no attribute 'colour'") as error:
        client.colour  # noqa: B018 - looking is enough
    assert (error.value.name, error.value.obj) == ("colour", client)


@pytest.mark.parametrize(
    ("method", "guess", "right"),
    [
        ("generate", "duration", "seconds"),
        ("generate", "aspect_ratio", "ratio"),
        ("generate", "prompt_text", "prompt"),
        ("generate", "image_url", "image"),
        ("generate", "idempotency_key", "custom_id"),
        ("video_to_video", "duration", "seconds"),
        ("act_one", "video_url", "video"),
        ("submit", "name", "custom_id"),
    ],
)
async def test_a_guessed_argument_names_the_right_one(
    client: Client, method: str, guess: str, right: str
) -> None:
    """Also if a needed argument is missing; the error does not show the value."""
    with pytest.raises(TypeError) as error:
        await getattr(client, method)(**{guess: "a secret"})
    assert str(error.value) == f"Client.{method}() has no argument {guess!r}; use {right!r}."


async def test_the_official_format_has_the_same_guesses(client: Client) -> None:
    """Its own SDK calls the arguments so."""
    with pytest.raises(TypeError, match=r"image_to_video\(\) has no argument 'prompt_image'"):
        await client.official.image_to_video(prompt_image=IMAGE)  # type: ignore[call-arg]


@pytest.mark.parametrize(
    ("kind", "guess", "right"),
    [
        (TextToVideo, "duration", "seconds"),
        (TextToVideo, "promptText", "prompt"),
        (ImageToVideo, "image_url", "image"),
        (VideoToVideo, "video_url", "video"),
        (OfficialImageToVideo, "promptImage", "image"),
    ],
)
def test_a_guessed_field_names_the_right_one(kind: Any, guess: str, right: str) -> None:
    """As of a method; the signature of a request stays what it was."""
    with pytest.raises(TypeError) as error:
        kind(**{guess: "a secret"})
    assert (
        str(error.value) == f"{kind.__name__}.__init__() has no argument {guess!r}; use {right!r}."
    )
    assert right in inspect.signature(kind).parameters


async def test_an_argument_that_is_no_guess_is_refused_as_usual(client: Client) -> None:
    """Also a guess for an argument that the method does not have."""
    for name in ("colour", "aspect_ratio"):
        wrong: dict[str, Any] = {name: 5}
        with pytest.raises(TypeError, match=f"unexpected keyword argument '{name}'"):
            await client.act_one("https://a.example/1.mp4", IMAGE, **wrong)


async def test_an_argument_may_have_the_name_of_a_guess(client: Client) -> None:
    """`path` is a guess for `save`, and what `download` calls its argument."""
    record = TaskRecord("t-1", TaskState.SUCCEEDED, video_url="https://a.example/1.mp4")
    clip = Clip(client._sessions, client.task("t-1"), record)
    with pytest.raises(TypeError, match="has no argument 'output'; use 'path'"):
        await clip.download(output="kitten.mp4")  # type: ignore[call-arg]
    with pytest.raises(UsageError, match="path is of type int"):
        await clip.download(path=5)  # type: ignore[arg-type]
