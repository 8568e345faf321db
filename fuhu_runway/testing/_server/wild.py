"""
Responses seen from gateways, proxies and networks, documented or not, as literal text.

`SHAPES` are responses about a task, and may be used as dialects; `KNOWN` are those without a task.
"""

from typing import Final

import attrs

JSON: Final = "application/json; charset=utf-8"
HTML: Final = "text/html; charset=utf-8"


@attrs.frozen
class Shape:
    """
    One way to respond about a task.

    Its text may contain $id, $answer for the envelope, $data for its `data`, $rest for $data
    without braces and id, $text for $data as JSON in a string, $official for an official task
    without braces, and single values: $state, $unified and $status (three spellings of the
    state), $url, $output, $input, $reason, $error, $created and $updated.
    """

    #: What is unusual about it.
    help: str
    text: str
    content_type: str = JSON
    encoding: str = "utf-8"
    #: Whether the feed returns the envelope instead.
    submits_only: bool = False


SHAPES: Final[dict[str, Shape]] = {
    # The id under another name.
    "taskId": Shape(
        "The id is in `data.taskId`.",
        '{"code":200,"msg":"success","data":{"taskId":"$id",$rest}}',
    ),
    "data_id": Shape(
        "The id is in `data.id`.",
        '{"code":200,"msg":"success","data":{"id":"$id",$rest}}',
    ),
    "bare_id": Shape("The id is in `id`, without an envelope.", '{"id":"$id",$rest}'),
    "bare_taskId": Shape("The id is in `taskId`, without an envelope.", '{"taskId":"$id",$rest}'),
    "data_is_id": Shape(
        "A submit's `data` is the id.",
        '{"code":200,"msg":"success","data":"$id"}',
        submits_only=True,
    ),
    "data_text": Shape("`data` is JSON in a string.", '{"code":200,"msg":"success","data":$text}'),
    "data_list": Shape("`data` is a list of one.", '{"code":200,"msg":"success","data":[$data]}'),
    "result": Shape("`result` in place of `data`.", '{"code":200,"msg":"success","result":$data}'),
    "result_is_id": Shape(
        "A submit's `result` is the id.",
        '{"code":200,"msg":"success","result":"$id"}',
        submits_only=True,
    ),
    # Signs of a refusal next to a task.
    "code_0": Shape("`code` 0 is a success.", '{"code":0,"msg":"success","data":$data}'),
    "code_1": Shape("`code` 1 is a success.", '{"code":1,"msg":"success","data":$data}'),
    "code_ok": Shape('`code` "ok" is a success.', '{"code":"ok","msg":"","data":$data}'),
    "code_success": Shape(
        'The envelope with `code` "success".', '{"code":"success","msg":"","data":$data}'
    ),
    "success_false": Shape(
        "`success` is false next to a task.", '{"success":false,"message":"","data":$data}'
    ),
    "empty_error": Shape(
        "An empty `error` next to a task.",
        '{"code":200,"msg":"success","data":$data,"error":{"code":"","message":""}}',
    ),
    "official_empty_error": Shape(
        "The same next to an official task.", '{$official,"error":{"code":"","message":""}}'
    ),
    "warning": Shape(
        "A warning in `error` next to a task.",
        '{"code":200,"msg":"success","data":$data,"error":"warning: slow"}',
    ),
    # Text that a strict JSON parser rejects.
    "php_warning": Shape(
        "A PHP warning before the JSON.",
        "<br />\n<b>Warning</b>:  Undefined index: uid in <b>/www/runway.php</b> on line "
        "<b>31</b><br />\n$answer",
        content_type=HTML,
    ),
    "two_values": Shape(
        "An error after the JSON.",
        '$answer{"code":"insert_task_failed","message":"database is locked","data":null}',
    ),
    "official_two_values": Shape(
        "The same after an official task.",
        '{$official}{"code":"insert_task_failed","message":"database is locked","data":null}',
    ),
    "raw_control": Shape(
        "Unescaped line breaks and other control characters in a string of the JSON.",
        '{"code":200,"msg":"one\ntwo\r\n\tthree\x1b","data":$data}',
    ),
    "bom": Shape("A byte order mark before the JSON.", "\ufeff$answer"),
    "utf_16": Shape(
        "JSON in UTF-16.", "$answer", content_type="application/json", encoding="utf-16"
    ),
    "gbk": Shape(
        "JSON in GBK.",
        '{"code":200,"msg":"成功","data":$data}',
        content_type="application/json; charset=gbk",
        encoding="gb18030",
    ),
    # Other responses to a poll.
    "data_url": Shape(
        "New-API's later relay: the URL is in `data.url`, a reason in `data.error`.",
        '{"code":"success","message":"","data":{"task_id":"$id","status":"$state","url":$url,'
        '"format":"mp4","metadata":null,"error":$error}}',
    ),
    "unified": Shape(
        "ezlinkai: `task_status` and `video_result`; a submit returns `succeed` too.",
        '{"task_id":"$id","task_status":"$unified","message":$reason,"video_result":$url}',
    ),
    "unified_list": Shape(
        "The same with the URL in `video_results[0].url`.",
        '{"task_id":"$id","task_status":"$unified","message":$reason,'
        '"video_results":[{"url":$url}]}',
    ),
    "official_deer": Shape(
        "DeerAPI's official task: a failure is in `error`.",
        '{"id":"$id","status":"$status","createdAt":"$created","updatedAt":"$updated",'
        '"output":$output,"error":$error}',
    ),
    "raw_is_input": Shape(
        "`raw_video_url` is the video in the request.",
        '{"code":200,"msg":"成功","data":{"task_id":"$id",$rest,"raw_video_url":$input}}',
    ),
}


DOCS: Final = "https://docs.dev.runwayml.com/api"


@attrs.frozen
class Known:
    """One response that is the same for every request."""

    status: int
    body: str = ""
    content_type: str = JSON
    headers: tuple[tuple[str, str], ...] = ()
    #: Whether a task was created and paid for first.
    accepted: bool = False
    #: Whether that task is in the account's list.
    is_listed: bool = True


def _relay(status: int, code: str, message: str = "") -> Known:
    """Return dialect D: the flat error of the task relay."""
    return Known(status, f'{{"code":"{code}","message":"{message or code}","data":null}}')


KNOWN: Final[dict[str, Known]] = {
    "no_credits": Known(
        400, f'{{"error":"You do not have enough credits to run this task.","docUrl":"{DOCS}"}}'
    ),
    "no_credits_nested": Known(
        400,
        '{"code":"fail_to_fetch_task","message":"{\\"error\\":\\"You do not have enough credits to '
        f'run this task.\\",\\"docUrl\\":\\"{DOCS}\\"}}","data":null}}',
    ),
    "issues": Known(
        400,
        '{"error":"Validation of body failed","issues":[{"code":"too_big","maximum":1000,'
        '"message":"Too big: expected string to have <=1000 characters",'
        f'"path":["promptText"]}}],"docUrl":"{DOCS}"}}',
    ),
    "reference_images_empty": _relay(400, "reference_images_empty"),
    "invalid_parameters": _relay(400, "invalid_parameters"),
    "channel_disabled": Known(
        403,
        '{"error":{"message":"该渠道已被禁用","type":"new_api_error","param":"",'
        '"code":"channel_disabled"}}',
    ),
    "task_channel_disable": _relay(400, "task_channel_disable", "channel is disabled"),
    "get_channel_failed": _relay(500, "get_channel_failed"),
    "no_available_key": _relay(500, "no_available_key"),
    "request_failed": _relay(500, "request_failed", "EOF"),
    # What could not be inserted is the row of the list.
    "insert_task_failed": Known(
        500,
        '{"code":"insert_task_failed","message":"database is locked","data":null}',
        accepted=True,
        is_listed=False,
    ),
    "could_not_find_task": Known(404, '{"error":"Could not find Task"}'),
    "no_such_task": Known(
        404, '{"error":{"message":"视频任务不存在","type":"new_api_error","code":""}}'
    ),
    "task_not_exist_in_200": _relay(200, "task_not_exist"),
    "empty": Known(200, content_type=HTML),
    "fatal_error": Known(
        200,
        "<br />\n<b>Fatal error</b>:  Maximum execution time of 30 seconds exceeded in "
        "<b>/www/runway.php</b> on line <b>31</b><br />\n",
        HTML,
    ),
    "challenge": Known(
        403,
        '<!DOCTYPE html><html lang="en-US"><head><title>Just a moment...</title></head>'
        "<body><noscript>Enable JavaScript and cookies to continue</noscript></body></html>",
        "text/html; charset=UTF-8",
        (("cf-mitigated", "challenge"), ("Server", "cloudflare")),
    ),
    "captive_portal": Known(
        200,
        "<html><head><meta http-equiv='refresh' content='0;url=http://portal.invalid/login'>"
        "</head><body>Please sign in to the network.</body></html>",
        HTML,
    ),
    "captive_portal_511": Known(
        511, "<html><body>Network Authentication Required</body></html>", HTML
    ),
    # An account's list when its database failed, and a log whose rows have no key.
    "no_tasks": Known(
        200,
        '{"data":{"page":1,"page_size":100,"total":0,"items":null},"message":"","success":true}',
    ),
    "no_charges": Known(200, '{"data":[],"message":"","success":true}'),
    # A gateway whose console is on another origin.
    "to_console": Known(
        301, headers=(("Location", "http://console.invalid/api/log/token?key=sk-simulated"),)
    ),
    "see_other": Known(303, headers=(("Location", "/login"),)),
    "closed_request": Known(499),
    "origin_error": Known(600),
}
