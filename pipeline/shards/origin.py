"""Where remote bytes come from: fsspec, with one policy of timeouts, and its errors told apart by what can be done.

Every protocol of fsspec has exceptions of its own. Here each becomes one of: FileNotFoundError; a final
:class:`~pipeline.base.errors.UserError`; :class:`Unreachable`, worth another try; :class:`PastTheEnd`.
"""

from __future__ import annotations

import os
import re
import threading
import weakref
from collections.abc import Mapping
from typing import Any, Final

from pipeline.base.errors import UserError

_RETRIED_STATUS: Final = frozenset({408, 409, 425, 429})
"""Of the 4xx: timeout, conflict, too early, too many requests. Every other 4xx will be the same the next time."""
_FINAL_OF_BOTOCORE: Final = frozenset(
    {
        "NoCredentialsError",
        "PartialCredentialsError",
        "ProfileNotFound",
        "SSOTokenLoadError",
        "UnauthorizedSSOTokenError",
        "TokenRetrievalError",
    }
)
_MOST_STALLS_A_REQUEST: Final = 20
"""A server that trickles is never silent, but a request to it ends at last, and the next asks for less."""
_BUGS: Final = (TypeError, AttributeError, LookupError, NameError, AssertionError, NotImplementedError, ImportError)

_filesystems: Final[weakref.WeakValueDictionary[int, Any]] = weakref.WeakValueDictionary()
_of_parents: Final[list[Any]] = []


def _keep_those_of_the_parent() -> None:
    # Their finalisers would wait for the parent's event loop, which does not run in a child: never run them.
    _of_parents.extend(_filesystems.values())
    _filesystems.clear()


os.register_at_fork(after_in_child=_keep_those_of_the_parent)


class Unreachable(Exception):
    """The server did not answer, broke off, stalled or said that it cannot now."""


class PastTheEnd(Exception):
    """The file ends before the first byte asked for."""


class Origin:
    """A remote directory. Safe in several threads, after a fork, and to pickle.

    Args:
        url: with a protocol that fsspec knows and that reads ranges.
        storage_options: for the protocol's file system class; they win over what is set here.
        stall_seconds: a connection without a byte for so long is given up.

    Raises:
        UserError: unknown protocol, a missing library, options it does not take, or a URL with a password, without a
            host or with a query.
    """

    def __init__(self, url: str, storage_options: Mapping[str, Any], stall_seconds: float) -> None:
        protocol, colon, place = url.partition("://")
        self.url = f"{protocol}{colon}{place.rstrip('/')}"
        self.storage_options = dict(storage_options)
        self.stall_seconds = stall_seconds
        self._start()
        self._check_url(url)
        self._filesystem()

    def _check_url(self, url: str) -> None:
        host = re.match("[^/?#]*", url.partition("://")[2])
        assert host is not None
        is_web = self.protocol in ("http", "https")
        if re.search(":.*@" if not is_web else "@", host[0]):
            raise UserError(
                f"data.corpus: {self.shown}: the URL holds a password, which would be written into the run directory. "
                "Leave it out. Credentials belong into the environment of every node: for https:// into ~/.netrc, with "
                "data.cache.storage_options {client_kwargs: {trust_env: true}}."
            )
        if not host[0] and (is_web or self.protocol in ("s3", "s3a")):
            raise UserError(
                f"data.corpus: {url} names no host or bucket. Write it as https://HOST/FOLDER or s3://BUCKET/FOLDER."
            )
        if is_web and re.search("[?#]", url):
            raise UserError(
                f"data.corpus: {self.shown}: names of files are added to the URL, so it can have no `?` or `#`. Give "
                "the address of the corpus's folder; a token can go into a header, with data.cache.storage_options "
                "{headers: {Authorization: Bearer $NAME_OF_A_VARIABLE}}."
            )

    def _start(self) -> None:
        self._process = os.getpid()
        self._lock = threading.Lock()
        self._connected: tuple[Any, str] | None = None

    def __getstate__(self) -> dict[str, Any]:
        return {name: value for name, value in self.__dict__.items() if name not in ("_process", "_lock", "_connected")}

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__dict__.update(state)
        self._start()

    @property
    def protocol(self) -> str:
        """``"https"``, ``"s3"``, ..."""
        return self.url.partition("://")[0]

    @property
    def shown(self) -> str:
        """The URL for messages: without a password or what a query may hold."""
        url = re.sub("[?#].*", "", self.url) if self.protocol in ("http", "https") else self.url
        return re.sub("://[^/]*@", "://", url)

    def describe(self, name: str) -> str:
        """URL of a file, for messages."""
        return f"{self.shown}/{name}"

    def read(self, name: str, begin: int = 0, end: int | None = None) -> bytes:
        """Bytes ``begin`` to ``end`` (to the last) of a file; all of it from a server that ignores ranges.

        Raises:
            FileNotFoundError: there is no such file.
            Unreachable: it may work later.
            PastTheEnd: the file is not that long.
            UserError: it will not work until the user changes something.
        """
        filesystem, folder = self._filesystem()
        try:
            return filesystem.cat_file(f"{folder}/{name}", start=begin, end=end)
        except Exception as error:
            if isinstance(error, TypeError) and self.storage_options:
                raise UserError(f"data.cache.storage_options: {self.shown} does not take them ({error}).") from error
            if isinstance(error, _BUGS):
                raise
            raise self._translated(error, self.describe(name)) from error

    def _filesystem(self) -> tuple[Any, str]:
        """fsspec's object and the folder's path in it."""
        if self._process != os.getpid():  # A forked child can use neither its parent's connection nor its lock.
            self._start()
        with self._lock:
            if self._connected is None:
                self._connected = self._connect()
            return self._connected

    def _connect(self) -> tuple[Any, str]:
        from fsspec.core import url_to_fs

        options = _timeouts(self.protocol, self.stall_seconds)
        for name, value in self.storage_options.items():
            both = isinstance(value, Mapping) and isinstance(options.get(name), Mapping)
            options[name] = {**options[name], **value} if both else value
        try:
            filesystem, folder = url_to_fs(self.url, **options, skip_instance_cache=True)
        except ImportError as error:
            raise UserError(
                f"data.corpus: {self.shown} needs a library that is not installed ({error}). For s3:// it is "
                "`pip install 'pretrain[s3]'`."
            ) from None
        except (ValueError, TypeError, OSError) as error:
            raise UserError(
                f"data.corpus: {self.shown} cannot be opened ({error}). Use https://, s3:// or another protocol of "
                "fsspec that reads ranges, and in data.cache.storage_options only what its file system takes."
            ) from None
        if hasattr(filesystem, "retries"):
            filesystem.retries = 1  # Retrying is the downloader's: layers of it multiply their waits.
        _filesystems[id(filesystem)] = filesystem
        return filesystem, folder.rstrip("/")

    def _translated(self, error: Exception, url: str) -> Exception:
        status = _http_status(error)
        said = re.sub(r"(://[^\s?'\"]*)\?[^\s'\"]*", r"\1?...", str(error))  # servers redirect to signed addresses
        cause = f"{type(error).__name__}: {said}" if said else type(error).__name__
        if isinstance(error, FileNotFoundError) or status == 404:
            return FileNotFoundError(f"{url} does not exist")
        if status == 416:
            return PastTheEnd(cause)
        if isinstance(error, TimeoutError):
            return Unreachable(cause)
        if isinstance(error, PermissionError) or status in (401, 403) or type(error).__name__ in _FINAL_OF_BOTOCORE:
            return AccessRefused(
                f"{url}: access refused ({cause}). Check the credentials on this node: for s3:// those of the AWS "
                "environment or profile, or data.cache.storage_options, where `anon: true` is for a public bucket. S3 "
                "also answers so for a file that does not exist in a bucket that may not be listed."
            )
        untrusted = "CERTIFICATE_VERIFY_FAILED" in str(error) or "Certificate" in type(error).__name__
        astray = type(error).__name__ in ("TooManyRedirects", "ParamValidationError") or isinstance(error, ValueError)
        bad_request = status is not None and 400 <= status < 500 and status not in _RETRIED_STATUS
        if untrusted or bad_request or astray:
            way_out = "Set SSL_CERT_FILE to the certificate of its authority." if untrusted else ""
            return UserError(
                f"{url}: the request is refused ({cause}), and would be again. Check data.corpus and "
                f"data.cache.storage_options. {way_out}".rstrip()
            )
        return Unreachable(cause)


class AccessRefused(UserError):
    """The server knows us too little."""


def _timeouts(protocol: str, stall_seconds: float) -> dict[str, Any]:
    """Options by which a protocol's file system gives up a silent connection."""
    if protocol in ("http", "https"):
        from aiohttp import ClientTimeout

        total_seconds = _MOST_STALLS_A_REQUEST * stall_seconds
        timeout = ClientTimeout(total=total_seconds, sock_connect=stall_seconds, sock_read=stall_seconds)
        # A compressed answer has other byte positions than the file.
        return {"client_kwargs": {"timeout": timeout}, "headers": {"Accept-Encoding": "identity"}}
    if protocol in ("s3", "s3a"):
        once = {"connect_timeout": stall_seconds, "read_timeout": stall_seconds, "retries": {"max_attempts": 0}}
        return {"config_kwargs": once}
    return {}


def _http_status(error: Exception) -> int | None:
    """From aiohttp's exceptions, or from botocore's under those that s3fs makes of them."""
    status = getattr(error, "status", None)
    for one in (error, error.__cause__):
        response = getattr(one, "response", None)
        if isinstance(response, Mapping):
            status = response.get("ResponseMetadata", {}).get("HTTPStatusCode", status)
    return status if isinstance(status, int) else None
