from __future__ import annotations

import os
from pathlib import Path

import pytest

from tinydet._internal.names import mask_secrets, printable, public_location

SECRET = "s3cret"


@pytest.mark.parametrize(
    ("name", "text"),
    [
        (b"pl\xe9ge.png", r"pl\xe9ge.png"),
        (b"a\nb\x1b[31m\x7f.png", r"a\nb\x1b[31m\x7f.png"),
        ("Größe 日本 🛩.png".encode(), "Größe 日本 🛩.png"),
        ("a\u202egnp.exe".encode(), r"a\u202egnp.exe"),
        ("a\u2028b".encode(), r"a\u2028b"),
        (b"-a:b?*\\.png", r"-a:b?*\.png"),
    ],
)
def test_any_file_name_becomes_one_line_of_utf8(name: bytes, text: str) -> None:
    for given in (os.fsdecode(name), Path(os.fsdecode(name))):
        assert printable(given) == text
    assert printable(text) == text
    assert len(text.encode().splitlines()) == 1


@pytest.mark.parametrize(
    ("address", "public"),
    [
        (f"rtsp://bob:{SECRET}@10.0.0.1:554/pier", "rtsp://***@10.0.0.1:554/pier"),
        (f"RTSP://bob:p@{SECRET}:x@host/pier", "RTSP://***@host/pier"),
        (f"rtsp://bob:p%40{SECRET}@host", "rtsp://***@host"),
        (f"rtsp://bob:a/{SECRET}#?@host/a.ts", "rtsp://***@host/a.ts"),
        (f"rtsp://admin:12/{SECRET}@host/a.ts", "rtsp://***@host/a.ts"),
        (f"rtmp://{SECRET}@host/app", "rtmp://***@host/app"),
        (f"http:/bob:{SECRET}@host/a.ts", "http:/***@host/a.ts"),
        (f"http://bob:it's {SECRET}@host/a.ts", "http://***@host/a.ts"),
        (f"http://host/a.ts?channel=1&token={SECRET}&x=2", "http://host/a.ts?channel=1&token=***&x=2"),
        (f"http://host/a.ts?PassWord={SECRET}#api_key={SECRET}", "http://host/a.ts?PassWord=***#api_key=***"),
        (f"http://host/a.ts;jsessionid={SECRET}", "http://host/a.ts;jsessionid=***"),
        (f"http://host/a.ts?%74oken={SECRET}", "http://host/a.ts?%74oken=***"),
        (f"https://s3/b/a.ts?X-Amz-Signature={SECRET}&X-Amz-Expires=60", "https://s3/b/a.ts?X-Amz-Signature=***&X-Amz-Expires=60"),
        (f"https://host/a.ts?{SECRET * 5}", "https://host/a.ts?***"),
        (f"https://host/a.ts?q={SECRET * 5}", "https://host/a.ts?q=***"),
        (f"srt://host:9000?passphrase={SECRET}", "srt://host:9000?passphrase=***"),
        (f"srt://host:9000?streamid={SECRET}", "srt://host:9000?streamid=***"),
    ],
)  # fmt: skip
def test_no_secret_of_an_address_is_shown(address: str, public: str) -> None:
    assert public_location(address) == public
    if " " not in address:
        assert mask_secrets(f"cannot open '{address}': timeout") == f"cannot open '{public}': timeout"
        assert mask_secrets(f"{address}: timeout") == f"{public}: timeout"


@pytest.mark.parametrize(
    "text",
    ["http://host:8080/@user/a.ts", "rtsp://10.0.0.1/cam?channel=1&subtype=0", "flight/a@b.png", "C:/a@b.png",
     "file:///tmp/a@b.tif", "mail bob@host", "https://host/"],
)  # fmt: skip
def test_values_that_are_not_secret_are_kept(text: str) -> None:
    assert mask_secrets(text) == public_location(text) == text
