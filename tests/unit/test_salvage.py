import gzip
import json
import random
import zlib

import pytest

from fuhu_runway._json import MAX_BROKEN, MAX_BYTES, decode, parsed, text_of
from fuhu_runway._wire.salvage import bare_id, id_of, salvage


@pytest.mark.parametrize(
    ("body", "ids"),
    [
        (b'{"task_id":"t-1"}', ("t-1",)),
        (b'{"taskId":"t-1"}', ("t-1",)),
        (b'{"TaskID":"t-1"}', ("t-1",)),
        (b'{"task-id":"t-1"}', ("t-1",)),
        (b'{"id":"t-1"}', ("t-1",)),
        (b'{"id":4711}', ("4711",)),
        (b'{"ID":"t-1"}', ("t-1",)),
        (b'{"data":{"id":"t-1"}}', ("t-1",)),
        (b'{"data":"t-1"}', ("t-1",)),
        (b'{"data":["t-1","t-2"]}', ("t-1", "t-2")),
        (b'{"data":[{"taskId":"t-1"}]}', ("t-1",)),
        (b'{"data":"[{\\"id\\":\\"t-1\\"}]"}', ("t-1",)),
        (b'{"result":"1712384729"}', ("1712384729",)),
        (b'{"output":{"task_id":"t-1"}}', ("t-1",)),
        (b'{"error":{"message":"odd","task_id":"t-1"}}', ("t-1",)),
        (b'{"error":{"message":"busy (task_id: t-1)"}}', ("t-1",)),
        (b'{"a":{"b":{"c":{"d":{"e":{"task_id":"t-1"}}}}}}', ("t-1",)),
        (b'{"task id":"t-1"}', ("t-1",)),
        (b'{"_id":"t-1"}', ("t-1",)),
        (b'{"generation_id":"t-1"}', ("t-1",)),
        (b'{"jobId":"t-1"}', ("t-1",)),
        (b'{"Data":{"Id":"t-1"}}', ("t-1",)),
        (b'{"tasks":[{"id":"t-1"}]}', ("t-1",)),
        (b'{"task_ids":["t-1"]}', ("t-1",)),
        (b'{"task_id":{"id":"t-1"}}', ("t-1",)),
        (b'{"task_id":"t-1","task_id":""}', ("t-1",)),
        (b'{"data":{"task_id":"t-1"},"data":null}', ("t-1",)),
        (b'{"task_id":4711.0}', ("4711",)),
        (b'{"result":1712384729}', ("1712384729",)),
        (b'{"task_id":"t|1"}', ("t|1",)),
        ('{"task_id":"任务-1"}'.encode(), ("任务-1",)),
        (b'{"id":"r-1","code":200,"data":{"id":"t-1"}}', ("t-1", "r-1")),
        (b'{"error":"{\\"task_id\\":\\"t-1\\"}"}', ("t-1",)),
        (b'{"id":"answer-1","data":{"task_id":"t-1"}}', ("t-1", "answer-1")),
        (b'{"id":"t-1"}{"id":"t-2"}', ("t-1", "t-2")),
        (b'<br />Warning: [x] {\n{"id":"t-1"}', ("t-1",)),
        (b'<script>x = {"id": "t-1"};</script>', ("t-1",)),
        (b'{"code":200,"data":{"task_id":"t-1","state":"","sta', ("t-1",)),
        (b'{"data":{"task_id":"t-1","options":{"a":1},"pro', ("t-1",)),
        (b'{"data":{"id":"t-1","pro', ("t-1",)),
        (b"{'task_id': 't-1'}", ("t-1",)),
        (b"task_id=t-1&status=queued", ("t-1",)),
        (b"<task_id>t-1</task_id>", ("t-1",)),
        (b"<task-id>t-1</task-id>", ("t-1",)),
        (b'<task_id type="string">t-1</task_id>', ("t-1",)),
        (b"<task_id><![CDATA[t-1]]></task_id>", ("t-1",)),
        (b"<r><id>t-1</id></r>", ("t-1",)),
        (b"<tr><td>task_id</td><td>t-1</td></tr>", ("t-1",)),
        (b"<dict><key>task_id</key><string>t-1</string></dict>", ("t-1",)),
        (b"<pre>{&quot;task_id&quot;:&quot;t-1&quot;}</pre>", ("t-1",)),
        (b"data%5Btask_id%5D=t-1&x=", ("t-1",)),
        (b"data=%7B%22task_id%22%3A%22t-1%22%7D", ("t-1",)),
        (b"id=t-1&code=200", ("t-1",)),
        (b'name="task_id"\r\n\r\nt-1\r\n--b--', ("t-1",)),
        (b'["task_id"]=> string(3) "t-1"', ("t-1",)),
        (b"{id:'t-1'}", ("t-1",)),
        (b"{task_id:`t-1`}", ("t-1",)),
        (b'{"code":200 "task_id":/*new*/"t-1",}', ("t-1",)),
        ("{“task_id”：“t-1”}".encode(), ("t-1",)),
        (b'{\xef\xbb\xbf"data":{"task_id":"t-1"}}', ("t-1",)),
        (b'data: {"status":"queued"}\n\ndata: {"task_id":"t-1"}\n', ("t-1",)),
        ('{"id":"t-1"}'.encode("utf-16"), ("t-1",)),
        ('{"id":"t-1"}'.encode("utf-32-be"), ("t-1",)),
        ('{"msg":"成功","task_id":"t-1"}'.encode("gbk"), ("t-1",)),
        # Perhaps cut.
        (b'{"code":200,"data":{"task_id":"573772da', ()),
        (b"task_id=573772da", ()),
        # Not an id.
        (b"", ()),
        (b"ok", ()),
        (b'{"data":"error"}', ()),
        (b'{"data":"two words 2"}', ()),
        (b'{"data":["ok",true,7]}', ()),
        (b'{"id":null,"task_id":"","data":{"id":true}}', ()),
        (b'{"id":"0","task_id":"None","data":{"id":["x"]}}', ()),
        (b'{"error":{"id":"request-1"}}', ()),
        (b'{"request_id":"request-1","message":"task_id: has to be set"}', ()),
        (b'{"data":60,"result":500000}', ()),
        (b'{"task_id":"","state":"","status":""}', ()),
        (b'{"task_id":-1,"id":-7,"job_id":1.5}', ()),
        (b'<html id="root"><div id="main-1">', ()),
        (b"[" * 100_000, ()),
        (b'{"a":' * 100_000, ()),
    ],
)
def test_the_ids_in_an_answer(body: bytes, ids: tuple[str, ...]) -> None:
    """Each id at a usual place is found, the surest first, in any encoding or format."""
    assert salvage(body) == ids


def test_a_compressed_answer_is_unpacked() -> None:
    """Both formats are recognised by their first bytes, and read up to a cut or broken place."""
    plain = b'{"id":"t-1"}' + bytes(100)
    assert salvage(gzip.compress(plain)) == salvage(zlib.compress(plain)) == ("t-1",)
    assert salvage(gzip.compress(plain)[:-10]) == ("t-1",)
    assert salvage(gzip.compress(plain)[:-8] + bytes(8)) == ("t-1",)
    assert salvage(gzip.compress(gzip.compress(plain))) == ("t-1",)
    packer = zlib.compressobj(wbits=-zlib.MAX_WBITS)
    assert salvage(packer.compress(plain) + packer.flush()) == ("t-1",)
    assert salvage(b"\xab\x56") == ()
    noise = plain + random.Random(1).randbytes(2 * MAX_BROKEN)
    assert salvage(gzip.compress(noise)[:-8] + bytes(8)) == ("t-1",)
    assert text_of(b"\x1f\x8bodd") == ""
    assert len(text_of(gzip.compress(b" " * (MAX_BYTES + 9)))) == MAX_BYTES


@pytest.mark.parametrize(
    ("body", "value"),
    [
        (b'{"a":1}', {"a": 1}),
        (b'\xef\xbb\xbf{"a":1}', {"a": 1}),
        (b'{"a":"one\ntwo\x00"}', {"a": "one\ntwo\0"}),
        (b'{"a":1}<br />', {"a": 1}),
        (b'{"a":1}{"b":2}', {"a": 1}),
        (b'<br />[x]\n{"a":1}\n', {"a": 1}),
        (b'"{\\"a\\":1}"', {"a": 1}),
        (b'"{odd"', "{odd"),
        (b'{"a":NaN}', {"a": None}),
        (b'{"a":%s}' % (b"9" * 5000), {"a": None}),
    ],
)
def test_loose_json_is_read(body: bytes, value: object) -> None:
    """A body that a strict parser refuses is read if it can only be one value."""
    assert decode(body) == value


@pytest.mark.parametrize(
    "body", [b"", b"ok", b'<p>{"a":1}</p>', b'{"a":{"b":1}', b'{"a":{"b":1},', b"{'a': 1}"]
)
def test_a_body_that_is_not_json(body: bytes) -> None:
    """A value inside a page, or inside a broken value, is not the response."""
    with pytest.raises(ValueError, match=r"."):
        decode(body)


def test_json_in_a_text() -> None:
    """Only objects and lists are read, because a text may be a number by chance."""
    assert parsed(' {"a":1}') == {"a": 1}
    assert parsed("[1]") == [1]
    assert parsed("7") is parsed("{") is parsed("[" * 100_000) is None


def test_an_id_at_the_end_of_a_whole_answer() -> None:
    """An id at the end, or as the whole response, counts only if all of the body arrived."""
    assert salvage(b"code=200&task_id=t-1", is_whole=True) == ("t-1",)
    assert salvage(b"573772da-c2ec-4a60\n", is_whole=True) == ("573772da-c2ec-4a60",)
    assert salvage(b"573772da-c2ec-4a60") == salvage(b"error 404", is_whole=True) == ()


@pytest.mark.parametrize("value", [None, True, "", "two words", "x" * 501, 1.5, [], "NULL", "0", 0])
def test_what_cannot_be_an_id(value: object) -> None:
    """An id is a text of one word or a whole number, and not a word such as null."""
    assert id_of(value) is None


def test_an_id_alone_has_a_digit() -> None:
    """Text without a digit is a word, such as error."""
    assert bare_id(" t-1 ") == "t-1"
    assert bare_id("error") is None
    assert bare_id(4711) is None
    assert json.loads(json.dumps(bare_id("573772da-c2ec"))) == "573772da-c2ec"
