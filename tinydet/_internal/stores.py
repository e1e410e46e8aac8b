"""Files in object stores and on web servers: `s3://`, `gs://`, `az://`, `https://`.

`to_path` turns an address into a `StorePath`, a path whose methods use fsspec. Nothing is imported before the first
address is used. Credentials come from the usual chain of each cloud (environment, configuration files, the role of the
machine) and are never part of a path: `str(path)` is safe to show, log and write, also for a signed URL.
"""

from __future__ import annotations

import contextlib
import functools
import hashlib
import io
import os
import re
import stat
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path, PosixPath
from typing import IO, Any
from urllib.parse import parse_qsl, urlencode, urlsplit

from tinydet._internal.errors import reason
from tinydet._internal.extras import needs_extra
from tinydet._internal.names import public_location

BUCKETS = ("s3", "gs", "az")  # stores with listings, which can be written
SCHEMES = (*BUCKETS, "https", "http")
START = 1 << 14  # bytes of an object that are read first and kept: they hold the header of most images
KEPT = 64  # objects whose first bytes are kept
FRESH = 30.0  # seconds for which the size and version of an object are taken as known
_ADDRESS = re.compile(rf"({'|'.join(SCHEMES)}):/+", re.IGNORECASE)
_SIGNATURE = re.compile(
    r"x-amz-.*|x-goog-.*|awsaccesskeyid|googleaccessid|signature|expires|policy|key-pair-id|s[eprv]|s[rtk]|sig|spr|sip|"
    r"sk[eostvp]\w*|response-\w.*",
    re.IGNORECASE,
)  # parameters of a signed URL, of all clouds
_EXPIRED = frozenset(
    {"ExpiredToken", "ExpiredTokenException", "TokenRefreshRequired", "InvalidToken", "RequestTimeTooSkewed"}
    | {"RequestExpired", "UnauthorizedSSOTokenError", "SSOTokenLoadError", "TokenRetrievalError", "RefreshError"}
    | {"LoginRefreshRequired", "RefreshWithMFAUnsupportedError"}
)
_SLOW = frozenset({"SlowDown", "ServiceUnavailable", "RequestLimitExceeded", "Throttling", "ServerBusy", "429", "503"})
_REFUSED = frozenset({"AccessDenied", "InvalidAccessKeyId", "SignatureDoesNotMatch", "AuthorizationFailure"}) | {
    *("AuthenticationFailed", "AuthorizationPermissionMismatch", "InsufficientAccountPermissions", "401", "403")
}
_NO_CREDENTIALS = frozenset({"NoCredentialsError", "PartialCredentialsError", "DefaultCredentialsError"}) | {
    *("CredentialUnavailableError", "ProfileNotFound", "CredentialRetrievalError", "ConfigNotFound")
}
_NO_BUCKET = frozenset({"NoSuchBucket", "ContainerNotFound", "InvalidBucketName"})
_MISSING = frozenset({"NoSuchKey", "NoSuchVersion", "BlobNotFound", "ResourceNotFound", "404", "410"})
_EXISTS = frozenset({"PreconditionFailed", "ConditionalRequestConflict", "BlobAlreadyExists", "412", "409"})
_UNREACHABLE = re.compile(r"Connect|Timeout|Disconnected|ClientOSError|DNS|SSL")
_HELP = {
    "s3": "AWS_PROFILE, AWS_ACCESS_KEY_ID, or `aws configure`; for a public bucket set AWS_NO_SIGN_REQUEST=YES",
    "gs": "GOOGLE_APPLICATION_CREDENTIALS, or `gcloud auth application-default login`; for a public bucket set"
    " GS_NO_SIGN_REQUEST=YES",
    "az": "AZURE_STORAGE_CONNECTION_STRING, or AZURE_STORAGE_ACCOUNT with both AZURE_STORAGE_ACCOUNT_KEY and"
    " AZURE_STORAGE_ACCESS_KEY; for a public container set AZURE_NO_SIGN_REQUEST=YES",
}


class StoreError(OSError):
    """A store did not deliver or take an object for a reason that concerns the connection or the account."""


def is_store(location: str | Path) -> bool:
    """Return whether a location is in an object store or on a web server."""
    return isinstance(location, StorePath) or bool(_ADDRESS.match(str(location)))


def is_bucket(location: str | Path) -> bool:
    """Return whether a location is in an object store, which has listings and can be written."""
    return is_store(location) and str(location).lower().startswith(BUCKETS)


def to_path(location: str | Path) -> Path:
    """Return the path of a file that is named by a path or an address.

    >>> to_path("flight/a.tif"), str(to_path("s3://bucket/a.tif").with_suffix(".json"))
    (PosixPath('flight/a.tif'), 's3://bucket/a.json')
    """
    if isinstance(location, StorePath):
        return location
    return StorePath.of(str(location)) if _ADDRESS.match(str(location)) else Path(location)


def public_address(address: str) -> str:
    """Return an address without its signature, user name and password.

    >>> public_address("https://host/a.tif?v=2&X-Amz-Signature=0a1b&X-Amz-Expires=60")
    'https://host/a.tif?v=2'
    """
    parts = urlsplit(address)
    if parts.scheme.lower() in ("http", "https") and parts.query:
        kept = [(name, value) for name, value in parse_qsl(parts.query, True) if not _SIGNATURE.fullmatch(name)]
        address = parts._replace(query=urlencode(kept), fragment="").geturl()
    return public_location(address)


class StorePath(PosixPath):
    """A path in an object store or on a web server. Reading methods work as those of `Path`; a folder is a prefix.

    Files are written with `upload` and `create`. `str` has no secrets; `address` has those that the user gave.

    Raises, in all methods that use the store:
        FileNotFoundError, PermissionError, StoreError: names the object, the reason and the way out.
        ModuleNotFoundError: the package for this kind of store is not installed.
    """

    _address: str | None = None

    @classmethod
    def of(cls, address: str) -> StorePath:
        """Return the path of an address."""
        scheme, _, rest = address.partition(":")
        address = f"{scheme.lower()}://{rest.lstrip('/')}"
        plain = public_address(address)
        path = cls(plain.partition("?")[0] if scheme.lower() not in BUCKETS else plain)
        path._address = address
        return path

    @property
    def address(self) -> str:
        """The address as it was given, which may contain a signature or a password. Never show it."""
        return self._address or str(self)

    @property
    def scheme(self) -> str:
        return self.parts[0].rstrip(":/")

    @property
    def key(self) -> str:
        """The name that fsspec knows the object by: bucket and key, or the whole address on a web server."""
        return self.address if self.scheme not in BUCKETS else self.address.partition("://")[2].rstrip("/")

    def __str__(self) -> str:
        if self._address is not None:
            return public_address(self._address)
        return _ADDRESS.sub(r"\1://", super().__str__())

    def __fspath__(self) -> str:
        return str(self)

    def __reduce__(self) -> Any:
        return StorePath.of, (self.address,)

    def absolute(self) -> StorePath:
        return self

    def resolve(self, strict: bool = False) -> StorePath:
        return self

    def stat(self, *, follow_symlinks: bool = True) -> os.stat_result:
        info = self.info()
        changed = int(info.changed * 1e9)
        times = (int(info.changed),) * 3
        return os.stat_result((stat.S_IFREG | 0o644, 0, 0, 1, 0, 0, info.size, *times), {"st_mtime_ns": changed})

    def lstat(self) -> os.stat_result:
        return self.stat()

    def info(self) -> Info:
        """Return size and version of the object."""
        return _info(self)

    def exists(self, *, follow_symlinks: bool = True) -> bool:
        return self.is_file() or self.is_dir()

    def is_file(self, *, follow_symlinks: bool = True) -> bool:
        try:
            self.info()
        except (FileNotFoundError, IsADirectoryError):
            return False
        return True

    def is_dir(self, *, follow_symlinks: bool = True) -> bool:
        """Return whether there are objects below this prefix, or it is a bucket."""
        if self.scheme not in BUCKETS or not self.key:
            return False
        if "/" not in self.key:
            return True  # an existing bucket may be empty, and its listing may be forbidden
        with store_errors(self):
            return bool(filesystem(self.scheme).isdir(self.key))

    def is_symlink(self) -> bool:
        return False

    def mkdir(self, mode: int = 0o777, parents: bool = False, exist_ok: bool = False) -> None:
        """Do nothing: an object needs no folder."""

    def unlink(self, missing_ok: bool = False) -> None:
        try:
            with store_errors(self):
                filesystem(self.scheme).rm_file(self.key)
        except FileNotFoundError:
            if not missing_ok:
                raise
        _forget(self)

    def open(  # type: ignore[override]
        self,
        mode: str = "r",
        buffering: int = -1,
        encoding: str | None = None,
        errors: str | None = None,
        newline: str | None = None,
    ) -> IO[Any]:
        if mode not in ("r", "rb", "rt"):
            raise ValueError(f"{self}: objects are written whole, not opened to write")
        file = io.BufferedReader(_ObjectFile(self), START)
        return file if mode == "rb" else io.TextIOWrapper(file, encoding, errors, newline)

    def read_bytes(self) -> bytes:
        with store_errors(self):
            return bytes(filesystem(self.scheme).cat_file(self.key))

    def download(self, target: Path) -> None:
        """Copy the object to a local file."""
        with store_errors(self):
            filesystem(self.scheme).get_file(self.key, str(target))

    def upload(self, source: Path) -> None:
        """Copy a local file to the object, whole or not at all."""
        self._check_writable()
        with store_errors(self, "written"):
            filesystem(self.scheme).put_file(str(source), self.key)
        _forget(self)

    def create(self, data: bytes) -> None:
        """Write a new object.

        Raises:
            FileExistsError: the object exists; it is unchanged, also if two processes create it at once.
        """
        self._check_writable()
        with store_errors(self, "written"):
            filesystem(self.scheme).pipe_file(self.key, data, mode="create")
        _forget(self)

    def files(self) -> dict[StorePath, Info]:
        """Return all objects below this prefix, sorted by name."""
        with store_errors(self, "listed"):
            found = filesystem(self.scheme).find(self.key, detail=True)
        return self._listed(found)

    def matches(self) -> dict[StorePath, Info]:
        """Return the objects that match this path as a pattern of `glob`, sorted by name."""
        with store_errors(self, "listed"):
            found = filesystem(self.scheme).glob(self.key, detail=True)
        return self._listed(found)

    def check_writable(self) -> None:
        """Check that objects can be written below this prefix, by an empty object that is removed again."""
        probe = self / ".tinydet-write-check"
        with store_errors(probe, "written"):
            self._check_writable()
            filesystem(self.scheme).pipe_file(probe.key, b"")
        with contextlib.suppress(OSError):  # an account may write and not delete
            probe.unlink()

    def _check_writable(self) -> None:
        if self.scheme not in BUCKETS:
            raise ValueError(f"{self}: outputs cannot go to a web server; write to a folder, or to {', '.join(_TO)}")

    def _listed(self, found: dict[str, Any]) -> dict[StorePath, Info]:
        names = sorted(name for name, entry in found.items() if entry["type"] == "file")
        return {StorePath.of(f"{self.scheme}://{name}"): _to_info(found[name]) for name in names}


_TO = [f"{scheme}://" for scheme in BUCKETS]


@dataclass(frozen=True)
class Info:
    """What a store states about an object.

    Attributes:
        size: in bytes.
        version: ETag, generation, or time of change: differs whenever the content does.
        changed: time of the last change in seconds since 1970; 0 if unknown.
    """

    size: int
    version: str
    changed: float = 0.0

    @property
    def state(self) -> tuple[int, int]:
        """Size and a number that stands for the version."""
        return self.size, int(hashlib.sha256(self.version.encode()).hexdigest()[:12], 16)


@functools.cache
def filesystem(scheme: str) -> Any:
    """Return fsspec's file system for a kind of store, with the credentials that its own chain finds.

    Raises:
        ModuleNotFoundError: its package is not installed.
    """
    public = {"use_listings_cache": False, "skip_instance_cache": True}
    if scheme == "s3":
        with needs_extra("s3"):
            import s3fs
        payer = os.environ.get("AWS_REQUEST_PAYER") == "requester"
        return s3fs.S3FileSystem(anon=_is_on("AWS_NO_SIGN_REQUEST"), requester_pays=payer, **public)
    if scheme == "gs":
        with needs_extra("gcs"):
            import gcsfs
        return gcsfs.GCSFileSystem(token="anon" if _is_on("GS_NO_SIGN_REQUEST") else None, **public)
    if scheme == "az":
        with needs_extra("azure"):
            import adlfs
        account = os.environ.get("AZURE_STORAGE_ACCOUNT_NAME") or os.environ.get("AZURE_STORAGE_ACCOUNT")
        return adlfs.AzureBlobFileSystem(account_name=account, anon=_is_on("AZURE_NO_SIGN_REQUEST"), **public)
    with needs_extra("https"):
        import aiohttp  # noqa: F401 - fsspec names only its own package
        import fsspec
    return fsspec.filesystem("http", **public)


@contextmanager
def store_errors(path: StorePath, action: str = "read") -> Iterator[None]:
    """Raise errors of a store as one line that names the object, the reason and the way out.

    Raises:
        FileNotFoundError, FileExistsError, PermissionError, StoreError: in place of the errors of the block.
    """
    try:
        yield
    except (StoreError, ImportError, ValueError):
        raise
    except Exception as error:
        raise _translated(path, action, error) from None  # the chain may contain a signed address


def _translated(path: StorePath, action: str, error: Exception) -> OSError:
    codes = _codes(error)
    bucket, scheme = f"{path.scheme}://{path.key.partition('/')[0]}", path.scheme
    way = _HELP.get(scheme, "a new signature, or user and password in the address")
    if codes & _EXPIRED or (codes & {"400", "403", "AccessDenied"} and "expired" in str(error).lower()):
        return PermissionError(f"{path}: cannot be {action}, the credentials have expired; renew them ({way})")
    if codes & _NO_CREDENTIALS:
        return PermissionError(f"{path}: cannot be {action}, no credentials were found; give some ({way})")
    if codes & _SLOW:
        return StoreError(
            f"{path}: cannot be {action}, the store asks to slow down (503) and several retries did not help; wait, or "
            "run fewer processes and --readers at once"
        )
    if codes & _NO_BUCKET:
        return FileNotFoundError(f"{bucket}: no such bucket; check its name, and the account, region or endpoint")
    if codes & _EXISTS or isinstance(error, FileExistsError):
        return FileExistsError(f"{path} exists already; another run writes it, so stop one of them")
    if codes & _REFUSED or isinstance(error, PermissionError):
        return PermissionError(
            f"{path}: cannot be {action}, access is denied (403); use credentials that permit this ({way})"
        )
    if codes & _MISSING or isinstance(error, FileNotFoundError):
        return FileNotFoundError(f"{path}: no such object; check the address")
    if isinstance(error, TimeoutError | ConnectionError) or any(map(_UNREACHABLE.search, codes)):
        return StoreError(f"{path}: cannot be {action}, the store is unreachable; check the network and the endpoint")
    text = public_location(reason(error)).replace(path.address, str(path))
    return StoreError(f"{path}: cannot be {action} ({text}); try again")


def _codes(error: BaseException | None) -> set[str]:
    """Return the codes and class names of an error and those that it was raised from."""
    found: set[str] = set()
    while error is not None:
        found.add(type(error).__name__)
        response = getattr(error, "response", None)
        if isinstance(response, dict):  # botocore
            found.add(str(response.get("Error", {}).get("Code", "")))
            found.add(str(response.get("ResponseMetadata", {}).get("HTTPStatusCode", "")))
        for name in ("status", "status_code", "code", "error_code"):  # aiohttp, Azure, Google
            found.add(str(getattr(getattr(error, name, ""), "value", getattr(error, name, ""))))
        error = error.__cause__ or error.__context__
    return found


class _ObjectFile(io.RawIOBase):
    """An object as a raw file to read, by requests for ranges of bytes."""

    def __init__(self, path: StorePath) -> None:
        self._path, self._position = path, 0
        self._info = path.info()

    def readable(self) -> bool:
        return True

    def seekable(self) -> bool:
        return True

    def seek(self, offset: int, whence: int = io.SEEK_SET) -> int:
        self._position = offset + (0, self._position, self._info.size)[whence]
        return self._position

    def tell(self) -> int:
        return self._position

    def readinto(self, buffer: Any) -> int:
        data = self._range(self._position, min(self._position + len(buffer), self._info.size))
        buffer[: len(data)] = data
        self._position += len(data)
        return len(data)

    def readall(self) -> bytes:
        data = self._range(self._position, self._info.size)
        self._position += len(data)
        return data

    def _range(self, first: int, end: int) -> bytes:
        if first >= end:
            return b""
        start = _start(self._path, self._info) if first < START else b""
        if end <= len(start):
            return start[first:end]
        rest = max(first, len(start))
        return start[first:] + _read(self._path, rest, end)


def read_byte(path: StorePath) -> None:
    """Read one byte of an object. Raises the error of the store if that fails."""
    _read(path, 0, 1)


def _read(path: StorePath, first: int, end: int) -> bytes:
    with store_errors(path):
        data = bytes(filesystem(path.scheme).cat_file(path.key, start=first, end=end))
    if len(data) != end - first:
        raise StoreError(f"{path}: the store sent {len(data)} of {end - first} bytes; try again")
    return data


@functools.lru_cache(maxsize=KEPT)
def _start(path: StorePath, info: Info) -> bytes:
    return _read(path, 0, min(START, info.size))


_KNOWN: dict[str, tuple[float, Info]] = {}  # by key, with the time of the request
_GUARD = threading.Lock()


def _info(path: StorePath) -> Info:
    with _GUARD:
        known = _KNOWN.get(path.key)
    if known is not None and time.monotonic() - known[0] < FRESH:
        return known[1]
    try:
        with store_errors(path):
            entry = filesystem(path.scheme).info(path.key)
    except OSError:
        # The answer to HEAD has no body, so the reason (no bucket, expired credentials) takes a second request.
        if path.scheme == "s3" and "/" in path.key:
            read_byte(path)
        raise
    if entry["type"] != "file":
        raise IsADirectoryError(f"{path}: a folder, not a file; check the address")
    if entry.get("size") is None:
        raise StoreError(f"{path}: the server does not state the size of the file; download it and name the copy")
    info = _to_info(entry)
    with _GUARD:
        if len(_KNOWN) > 4096:
            _KNOWN.clear()
        _KNOWN[path.key] = time.monotonic(), info
    return info


def _forget(path: StorePath) -> None:
    with _GUARD:
        _KNOWN.pop(path.key, None)


def _to_info(entry: dict[str, Any]) -> Info:
    changed = next((entry[name] for name in ("LastModified", "last_modified", "mtime", "updated") if name in entry), 0)
    seconds = changed.timestamp() if hasattr(changed, "timestamp") else 0.0
    names = ("ETag", "etag", "generation", "md5Hash", "Last-Modified")
    version = next((str(entry[name]) for name in names if entry.get(name)), str(changed))
    return Info(int(entry["size"]), version.strip('"'), seconds)


def _is_on(variable: str) -> bool:
    return os.environ.get(variable, "").upper() in ("1", "YES", "TRUE", "ON")


# ------------------------------------------------------------------------------------------------------------- GDAL


def gdal_name(path: StorePath) -> str:
    """Return the name by which GDAL opens an object. It contains the secrets of `StorePath.address`; never show it."""
    names = {"s3": "/vsis3/", "gs": "/vsigs/", "az": "/vsiaz/"}
    return f"{names.get(path.scheme, '/vsicurl/')}{path.key}"


def gdal_options(path: StorePath) -> dict[str, Any]:
    """Return the options with which GDAL reads an object, and no other: endpoint, retries, requests of exact ranges."""
    options: dict[str, Any] = {
        "CPL_VSIL_CURL_ALLOWED_FILENAME": gdal_name(path),
        "GDAL_DISABLE_READDIR_ON_OPEN": "EMPTY_DIR",  # no requests for sidecar files
        "GDAL_HTTP_MERGE_CONSECUTIVE_RANGES": "YES",
    }
    usual = {"GDAL_HTTP_MAX_RETRY": "5", "GDAL_HTTP_RETRY_DELAY": "0.5", "GDAL_HTTP_CONNECTTIMEOUT": "10"}
    usual |= {"GDAL_HTTP_LOW_SPEED_TIME": "30", "GDAL_HTTP_LOW_SPEED_LIMIT": "1"}
    options |= {name: value for name, value in usual.items() if name not in os.environ}
    if path.scheme not in BUCKETS and urlsplit(path.address).query:
        options["CPL_VSIL_CURL_USE_HEAD"] = "NO"  # an address is signed for one method
    if path.scheme == "s3" and "AWS_S3_ENDPOINT" not in os.environ:
        endpoint = urlsplit(_s3_endpoint())
        if endpoint.hostname and not endpoint.hostname.endswith((".amazonaws.com", ".amazonaws.com.cn")):
            options["AWS_S3_ENDPOINT"] = endpoint.netloc
            options["AWS_HTTPS"] = "YES" if endpoint.scheme == "https" else "NO"
            options.setdefault("AWS_VIRTUAL_HOSTING", os.environ.get("AWS_VIRTUAL_HOSTING", "FALSE"))
    elif path.scheme == "gs" and "GOOGLE_APPLICATION_CREDENTIALS" not in os.environ:
        default = Path.home() / ".config/gcloud/application_default_credentials.json"
        if default.is_file():
            options["GOOGLE_APPLICATION_CREDENTIALS"] = str(default)
    elif path.scheme == "az" and "AZURE_STORAGE_ACCOUNT" not in os.environ:
        options["AZURE_STORAGE_ACCOUNT"] = os.environ.get("AZURE_STORAGE_ACCOUNT_NAME", "")
    return options


@functools.cache
def _s3_endpoint() -> str:
    """Return the endpoint that botocore takes from the environment and the configuration files."""
    fs = filesystem("s3")
    fs.connect()
    return str(fs.s3.meta.endpoint_url)
