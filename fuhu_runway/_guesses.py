"""Names that people guess, from other SDKs or the gateways' fields, and the right ones."""

import functools
import inspect
from collections.abc import Callable, Container, Iterable, Mapping
from typing import Final, ParamSpec, TypeVar

P = ParamSpec("P")
T = TypeVar("T")

METHODS: Final[Mapping[str, str]] = {
    "text_to_video": "generate(prompt)",
    "image_to_video": "generate(prompt, image=url_or_path)",
    "create": "generate(prompt)",
    "create_task": "generate(prompt)",
    "create_video": "generate(prompt)",
    "generate_video": "generate(prompt)",
    "generate_and_wait": "run(prompt)",
    "upload": "run(prompt, image=Path(...)), which uploads the file",
    "tasks": "task(task_id)",
    "get_task": "task(task_id)",
    "retrieve": "task(task_id)",
    "wait": "task(task_id).wait()",
    "wait_for_task": "task(task_id).wait()",
    "get": "feed(task_id)",
    "get_status": "feed(task_id)",
    "poll": "feed(task_id)",
    "status": "feed(task_id)",
    "download": "run(prompt, save=path), or clip.download(path)",
    "save": "run(prompt, save=path), or clip.download(path)",
    "credits": "balance()",
    "get_balance": "balance()",
    "close": "aclose()",
}
"""What people look for in a `Client`, and what does it."""

ARGUMENTS: Final[Mapping[str, tuple[str, ...]]] = {
    "aspect_ratio": ("ratio",),
    "resolution": ("ratio",),
    "size": ("ratio",),
    "duration": ("seconds",),
    "length": ("seconds",),
    "prompt_text": ("prompt",),
    "promptText": ("prompt",),
    "text": ("prompt",),
    "text_prompt": ("prompt",),
    "image_prompt": ("image",),
    "image_url": ("image",),
    "img": ("image",),
    "prompt_image": ("image",),
    "promptImage": ("image",),
    "start_image": ("image",),
    "end_image": ("last_image",),
    "last_frame": ("last_image",),
    "video_url": ("video",),
    "prompt_video": ("video",),
    "camera": ("motion",),
    "motion_vector": ("motion",),
    "extra_body": ("extra",),
    "idempotency_key": ("custom_id",),
    "name": ("custom_id",),
    "callback": ("on_update", "on_progress"),
    "on_progress": ("on_update",),
    "on_update": ("on_progress",),
    "max_wait": ("timeout",),
    "key": ("api_key",),
    "token": ("api_key",),
    "api_base": ("base_url",),
    "url": ("base_url",),
    "concurrency": ("in_flight",),
    "max_concurrency": ("in_flight",),
    "out_dir": ("download_to",),
    "output_dir": ("download_to",),
    "dest": ("save", "path"),
    "download_to": ("save", "path"),
    "filename": ("save", "path"),
    "output": ("save", "path"),
    "path": ("save",),
    "save_to": ("save", "path"),
    "force": ("overwrite",),
    "max_size": ("max_bytes",),
}
"""What people call an argument, and its names; a call has one of them, or none."""


def meant(guess: str, known: Container[str]) -> str | None:
    """Return the one of the *known* names that a guess stands for, if there is one."""
    rights = () if guess in known else ARGUMENTS.get(guess, ())
    return next((right for right in rights if right in known), None)


def explained(call: Callable[P, T]) -> Callable[P, T]:
    """Make a function name the right argument for one that people guess."""

    @functools.wraps(call)
    def explained_call(*args: P.args, **kwargs: P.kwargs) -> T:
        if kwargs.keys() & ARGUMENTS.keys():
            refuse_guesses(call.__qualname__, kwargs, inspect.signature(call).parameters)
        return call(*args, **kwargs)

    return explained_call


def refuse_guesses(call: str, given: Iterable[str], known: Container[str]) -> None:
    """Raise a `TypeError` if *given* has a guess for one of the *known* arguments of a call."""
    for name in given:
        if right := meant(name, known):
            raise TypeError(f"{call}() has no argument {name!r}; use {right!r}.")


def refuse_unknown(call: str, given: Iterable[str], known: Container[str]) -> None:
    """Raise a `TypeError` if *given* has a name that is not *known*, as Python does."""
    names = list(given)
    refuse_guesses(call, names, known)
    for name in names:
        if name not in known:
            raise TypeError(f"{call}() got an unexpected keyword argument {name!r}")
