"""Errors of many protocols, told apart by what can be done; options and pickling."""

from __future__ import annotations

import os
import pickle
import sys
from pathlib import Path

import aiohttp
import botocore.exceptions
import pytest
from fsspec.implementations.memory import MemoryFileSystem
from fsspec.registry import _registry
from multidict import CIMultiDict, CIMultiDictProxy
from yarl import URL

from pipeline.base.errors import UserError
from pipeline.shards.origin import AccessRefused, Origin, PastTheEnd, Unreachable
from tests.servers import serving


def memory_origin(monkeypatch: pytest.MonkeyPatch, error: Exception) -> Origin:
    """An origin whose file system raises."""

    def fail(*_: object, **__: object) -> bytes:
        raise error

    monkeypatch.setattr(MemoryFileSystem, "cat_file", fail)
    return Origin("memory://corpus", {}, 1.0)


def http_error(status: int) -> aiohttp.ClientResponseError:
    request = aiohttp.RequestInfo(URL("http://host"), "GET", CIMultiDictProxy(CIMultiDict()))
    return aiohttp.ClientResponseError(request, (), status=status, message="said")


def boto_error(kind: type[OSError], status: int, code: str) -> OSError:
    """As s3fs makes them: a plain exception whose cause is botocore's."""
    answer = {"Error": {"Code": code, "Message": "said"}, "ResponseMetadata": {"HTTPStatusCode": status}}
    error = kind("said")
    error.__cause__ = botocore.exceptions.ClientError(answer, "GetObject")  # type: ignore[arg-type]  # a part of it
    return error


@pytest.mark.parametrize(
    ("error", "expected"),
    [
        (http_error(404), FileNotFoundError),
        (FileNotFoundError("x"), FileNotFoundError),
        (boto_error(FileNotFoundError, 404, "NoSuchKey"), FileNotFoundError),
        (http_error(401), AccessRefused),
        (http_error(403), AccessRefused),
        (boto_error(PermissionError, 403, "AccessDenied"), AccessRefused),
        (boto_error(PermissionError, 400, "ExpiredToken"), AccessRefused),
        (botocore.exceptions.NoCredentialsError(), AccessRefused),
        (botocore.exceptions.ProfileNotFound(profile="p"), AccessRefused),
        (http_error(400), UserError),
        (aiohttp.TooManyRedirects(http_error(301).request_info, ()), UserError),
        (http_error(410), UserError),
        (boto_error(OSError, 400, "InvalidToken"), UserError),
        (botocore.exceptions.ParamValidationError(report="bucket"), UserError),
        (aiohttp.InvalidURL("http://["), UserError),
        (OSError("SSL: CERTIFICATE_VERIFY_FAILED"), UserError),
        (http_error(416), PastTheEnd),
        (boto_error(OSError, 416, "InvalidRange"), PastTheEnd),
        (http_error(500), Unreachable),
        (http_error(503), Unreachable),
        (http_error(429), Unreachable),
        (http_error(408), Unreachable),
        (boto_error(OSError, 503, "SlowDown"), Unreachable),
        (boto_error(TimeoutError, 400, "RequestTimeout"), Unreachable),
        (aiohttp.ServerTimeoutError(), Unreachable),
        (aiohttp.ServerDisconnectedError(), Unreachable),
        (aiohttp.ClientPayloadError("cut"), Unreachable),
        (ConnectionResetError(), Unreachable),
        (botocore.exceptions.EndpointConnectionError(endpoint_url="u"), Unreachable),
        (EOFError(), Unreachable),
        (TypeError("a bug"), TypeError),
    ],
    ids=repr,
)
def test_every_error_becomes_what_can_be_done(
    monkeypatch: pytest.MonkeyPatch, error: Exception, expected: type[Exception]
) -> None:
    with pytest.raises(expected) as raised:
        memory_origin(monkeypatch, error).read("train/00000.tar")
    assert type(raised.value) is expected
    if expected is not TypeError and expected not in (Unreachable, PastTheEnd):
        assert "memory://corpus/train/00000.tar" in str(raised.value)


def test_refused_access_says_where_credentials_are_looked_for(monkeypatch: pytest.MonkeyPatch) -> None:
    origin = memory_origin(monkeypatch, botocore.exceptions.NoCredentialsError())
    with pytest.raises(UserError, match=r"Unable to locate credentials.*AWS.*data\.cache\.storage_options.*anon: true"):
        origin.read("manifest.json")


def test_a_certificate_of_an_unknown_authority_says_where_to_name_it(monkeypatch: pytest.MonkeyPatch) -> None:
    origin = memory_origin(monkeypatch, OSError("SSL: CERTIFICATE_VERIFY_FAILED"))
    with pytest.raises(UserError, match=r"CERTIFICATE_VERIFY_FAILED.*Set SSL_CERT_FILE"):
        origin.read("manifest.json")


def test_a_missing_library_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "s3fs", None)
    monkeypatch.delitem(_registry, "s3", raising=False)
    with pytest.raises(UserError, match=r"s3://bucket/corpus needs a library.*pip install 'pretrain\[s3\]'"):
        Origin("s3://bucket/corpus", {}, 1.0)


def test_an_unknown_protocol_and_options_that_it_does_not_take_are_refused() -> None:
    with pytest.raises(UserError, match=r"gopher://host/corpus cannot be opened .*https://, s3://"):
        Origin("gopher://host/corpus", {}, 1.0)
    with pytest.raises(UserError, match=r"data\.cache\.storage_options.*endpoint_url"):
        Origin("http://host/corpus", {"endpoint_url": "x"}, 1.0).read("manifest.json")
    with pytest.raises(UserError, match=r"data\.cache\.storage_options.*wrong"):
        Origin("s3://bucket/corpus", {"wrong": 1}, 1.0).read("manifest.json")


def test_a_url_with_a_query_is_refused() -> None:
    with pytest.raises(UserError, match=r"can have no `\?` or `#`"):
        Origin("https://host/corpus?token=1", {}, 1.0)


@pytest.mark.parametrize(
    "url", ["https://user:s3cret@host/c", "http://s3cret@host/c", "https://u:s3@cret@h/c", "ftp://u:s3cret@h/c"]
)
def test_a_url_with_a_password_is_refused_and_not_shown(url: str) -> None:
    with pytest.raises(UserError, match=r"://h(ost)?/c: the URL holds a password.*environment of every node") as raised:
        Origin(url, {}, 1.0)
    assert "cret" not in str(raised.value)


def test_a_query_is_not_shown() -> None:
    with pytest.raises(UserError, match=r"data\.corpus: https://host/corpus: names of files") as raised:
        Origin("https://host/corpus?token=s3cret", {}, 1.0)
    assert "s3cret" not in str(raised.value)


def test_what_a_redirect_signed_is_not_shown(monkeypatch: pytest.MonkeyPatch) -> None:
    request = aiohttp.RequestInfo(URL("http://cdn/x?Signature=s3cret"), "GET", CIMultiDictProxy(CIMultiDict()))
    origin = memory_origin(monkeypatch, aiohttp.ClientResponseError(request, (), status=403, message="said"))
    with pytest.raises(AccessRefused, match=r"said.*http://cdn/x\?\.\.\.") as raised:
        origin.read("manifest.json")
    assert "s3cret" not in str(raised.value)


@pytest.mark.parametrize("url", ["https://", "http:///corpus", "s3://"])
def test_a_url_without_a_host_is_refused(url: str) -> None:
    with pytest.raises(UserError, match=rf"{url} names no host or bucket"):
        Origin(url, {}, 1.0)


def test_a_server_that_is_asked_at_once_and_refuses_is_one_message() -> None:
    with pytest.raises(UserError, match=r"ftp://127\.0\.0\.1:1/c cannot be opened .*Connection refused"):
        Origin("ftp://127.0.0.1:1/c", {}, 1.0)


def test_ranges_and_pickled_copies_and_forked_children(tmp_path: Path) -> None:
    content = bytes(range(200))
    (tmp_path / "a").write_bytes(content)
    with serving(tmp_path) as server:
        origin = Origin(server.url + "/", {"headers": {"X-Of-The-User": "1"}}, 1.0)
        assert origin.read("a") == content
        for one in (origin, pickle.loads(pickle.dumps(origin))):
            assert one.read("a", 10, 20) == content[10:20]
        child = os.fork()
        if child == 0:
            os._exit(0 if origin.read("a", 5, 7) == content[5:7] else 1)
        assert os.waitpid(child, 0)[1] == 0
        with pytest.raises(PastTheEnd):
            origin.read("a", 200, 201)
