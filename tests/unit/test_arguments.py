import inspect
import math
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest
from support.clients import quick_client

from fuhu_runway import (
    Client,
    Clip,
    ImageToVideo,
    OfficialImageToVideo,
    Task,
    TaskRecord,
    TaskState,
    TextToVideo,
    VideoToVideo,
)
from fuhu_runway._guesses import METHODS
from fuhu_runway.callbacks import CallbackReceiver
from fuhu_runway.doctor import first_clip
from fuhu_runway.errors import UsageError
from fuhu_runway.journal import Journal
from fuhu_runway.models import Gateway, Limits, PollPolicy, RetryPolicy, Timeouts
from fuhu_runway.testing import Simulator

HERE = "http://127.0.0.1:1"


@pytest.fixture
async def idle() -> AsyncIterator[Simulator]:
    """Yield a gateway that must receive no request."""
    async with Simulator() as gateway:
        yield gateway
        assert gateway.requests == ()


@pytest.mark.parametrize(
    ("argument", "value"),
    [
        ("api_key", 5),
        ("api_key", b"sk-1"),
        ("base_url", 5),
        ("base_url", Path("x")),
        ("gateway", 5),
        ("gateway", Gateway),
        ("session", "x"),
        ("callback_url", 5),
        ("callbacks", 5),
        ("callbacks", CallbackReceiver),
        ("timeouts", 30),
        ("timeouts", 0),
        ("timeouts", Timeouts),
        ("retry", 3),
        ("retry", RetryPolicy),
        ("polling", {}),
        ("polling", PollPolicy),
        ("limits", 10),
        ("limits", False),
        ("limits", Limits),
        ("journal", 5),
        ("journal", Journal),
        ("journal", b"run.db"),
        ("hooks", print),
        ("hooks", 5),
        ("hooks", "log"),
        ("hooks", [5]),
        ("hooks", [dict]),
    ],
)
def test_a_client_names_the_argument_that_does_not_fit(argument: str, value: Any) -> None:
    """Wrong types are refused, even if empty, and so is a class in place of an instance."""
    with pytest.raises(UsageError) as caught:
        Client(**{"api_key": "sk-1", "base_url": HERE, argument: value})
    assert caught.value.field == argument
    assert caught.value.money == "Nothing was sent or charged."
    assert caught.value.advice.startswith("Use ")


@pytest.mark.parametrize(
    ("argument", "value"),
    [
        ("in_flight", 2.5),
        ("in_flight", True),
        ("in_flight", "3"),
        ("in_flight", 0),
        ("in_flight", None),
        ("in_flight", 10**9),
        ("download_to", 3),
        ("download_to", b"clips"),
        ("timeout", "60"),
        ("timeout", True),
        ("timeout", math.nan),
        ("timeout", -1),
        ("timeout", 10**400),
        ("max_points", "3"),
        ("max_points", -1.0),
        ("max_points", math.nan),
        ("retry_failed", 1),
    ],
)
async def test_a_batch_names_the_argument_that_does_not_fit(
    idle: Simulator, argument: str, value: Any
) -> None:
    """`batch` and `generate_many` raise before they read or send a prompt."""
    async with quick_client(idle) as client:
        with pytest.raises(UsageError) as caught:
            client.batch(["a kitten"], **{argument: value})
        assert caught.value.field == argument
        with pytest.raises(UsageError) as caught:
            await anext(client.generate_many(["a kitten"], **{argument: value}))
        assert caught.value.field == argument


@pytest.mark.parametrize(
    ("argument", "value"),
    [("timeout", "60"), ("timeout", False), ("timeout", [1]), ("on_update", 5)],
)
async def test_a_wait_names_the_argument_that_does_not_fit(
    idle: Simulator, argument: str, value: Any
) -> None:
    """The error is raised before the gateway is polled."""
    async with quick_client(idle) as client:
        with pytest.raises(UsageError) as caught:
            await client.task("t-1").wait(**{argument: value})
        assert caught.value.field == argument
        assert client.unfinished == ()


async def test_updates_name_their_argument(idle: Simulator) -> None:
    """The error is raised by the first step of the loop."""
    async with quick_client(idle) as client:
        with pytest.raises(UsageError) as caught:
            await anext(client.task("t-1").updates(timeout="60"))  # type: ignore[arg-type]
        assert caught.value.field == "timeout"


async def test_a_task_names_its_argument(idle: Simulator) -> None:
    """The id must be text, and *official* a flag."""
    async with quick_client(idle) as client:
        for make in (client.task, client.feed):
            for arguments, field in (((5,), "task_id"), ((None,), "task_id")):
                with pytest.raises(UsageError) as caught:
                    await _awaited(make(*arguments))
                assert caught.value.field == field
            with pytest.raises(UsageError) as caught:
                await _awaited(make("t-1", official="no"))
            assert caught.value.field == "official"


async def _awaited(made: Any) -> None:
    if not isinstance(made, Task):
        await made


@pytest.mark.parametrize(("argument", "value"), [("motion", {}), ("extra", []), ("extra", 0)])
async def test_an_empty_value_of_a_wrong_type_is_named(
    idle: Simulator, argument: str, value: Any
) -> None:
    """It does not count as an argument that was left out."""
    async with quick_client(idle) as client:
        with pytest.raises(UsageError) as caught:
            await client.generate("a kitten", **{argument: value})
        assert caught.value.field == argument


@pytest.mark.parametrize(
    ("value", "expected"),
    [
        (Timeouts, "timeouts is the class Timeouts."),
        (0.5, "timeouts is 0.5."),
        (30, "timeouts is of type int."),
        ("a marked prompt", "timeouts is of type str."),
    ],
)
def test_a_value_is_described_without_its_text(value: Any, expected: str) -> None:
    """A prompt or a key may have slipped into the wrong argument."""
    with pytest.raises(UsageError) as caught:
        Client("sk-1", base_url=HERE, timeouts=value)
    assert caught.value.happened == expected
    assert caught.value.advice == "Use an instance of Timeouts, or None."


@pytest.mark.parametrize(
    ("argument", "value"), [("timeout", -1), ("max_points", -5), ("in_flight", 0)]
)
def test_a_number_out_of_range_is_shown(argument: str, value: int) -> None:
    """Its type is right, so the error does not blame that."""
    options: dict[str, Any] = {argument: value}
    with pytest.raises(UsageError) as caught:
        Client("sk-1", base_url=HERE).batch([], **options)
    assert caught.value.happened == f"{argument} is {value}."


def test_a_batch_has_the_same_guesses() -> None:
    """The error names the call that was made."""
    options: dict[str, Any] = {"concurrency": 5}
    with pytest.raises(TypeError) as error:
        Client("sk-1", base_url=HERE).batch([], **options)
    assert str(error.value) == "Client.batch() has no argument 'concurrency'; use 'in_flight'."


def test_a_batch_refuses_other_arguments_as_usual() -> None:
    """The error names the public call, not a class behind it."""
    options: dict[str, Any] = {"colour": 5}
    with pytest.raises(TypeError) as error:
        Client("sk-1", base_url=HERE).batch([], **options)
    assert str(error.value) == "Client.batch() got an unexpected keyword argument 'colour'"


@pytest.mark.parametrize(("guess", "right"), [("token", "api_key"), ("url", "base_url")])
def test_a_client_has_the_same_guesses(guess: str, right: str) -> None:
    """The error does not show the value, which may be a key."""
    options: dict[str, Any] = {guess: "sk-secret"}
    with pytest.raises(TypeError) as error:
        Client(**options)
    assert str(error.value) == f"Client.__init__() has no argument {guess!r}; use {right!r}."


def test_good_arguments_are_accepted(tmp_path: Path) -> None:
    """Paths and numbers of every kind are accepted, and both None and infinity as a timeout."""
    client = Client("sk-1", base_url=HERE, journal=tmp_path / "run.db", polling=None, hooks=())
    client.batch([], in_flight=1, download_to=str(tmp_path), timeout=math.inf, max_points=0)
    client.batch([], in_flight=10**6, download_to=tmp_path, timeout=None, max_points=None)


# Names that people guess

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


async def test_a_function_has_the_same_guesses() -> None:
    """Its error begins with its own name, also if only the guess is passed."""
    with pytest.raises(TypeError) as error:
        await first_clip(output="kitten.mp4")  # type: ignore[call-arg]
    assert str(error.value) == "first_clip() has no argument 'output'; use 'path'."


async def test_an_argument_may_have_the_name_of_a_guess(client: Client) -> None:
    """`path` is a guess for `save`, and what `download` calls its argument."""
    record = TaskRecord("t-1", TaskState.SUCCEEDED, video_url="https://a.example/1.mp4")
    clip = Clip(client._sessions, client.task("t-1"), record)
    with pytest.raises(TypeError, match="has no argument 'output'; use 'path'"):
        await clip.download(output="kitten.mp4")  # type: ignore[call-arg]
    with pytest.raises(UsageError, match="path is of type int"):
        await clip.download(path=5)  # type: ignore[arg-type]
