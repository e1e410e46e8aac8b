"""A command that breaks every rule, to test that the fuzzer notices."""

from __future__ import annotations

import os
import socket
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path


def main(argv: Sequence[str] | None = None) -> int:
    (fault,) = argv or [""]
    match fault:
        case "traceback":
            raise KeyError("bug")
        case "hang":
            while True:
                pass
        case "crash":
            os.abort()
        case "silent":
            return 2
        case "talkative":
            print("tinydet x: error: one\ntinydet x: error: two", file=sys.stderr)
            return 2
        case "library":
            print("libx: oh\ntinydet x: error: one", file=sys.stderr)
            return 2
        case "code":
            return 7
        case "input":
            Path("in/a.json").write_text("[1]")
        case "outside":
            Path("../escaped").write_text("")
        case "far outside":
            open("/tmp/tinydet-escaped", "a").close()
            os.remove("/tmp/tinydet-escaped")
        case "left behind":
            Path("out/.a.0123abcd.json").write_text("")
        case "half refused":
            Path("out/a.csv").write_text("")
            print("tinydet x: error: one", file=sys.stderr)
            return 2
        case "not JSON":
            Path("out/a.json").write_text('{"a": NaN}')
        case "program":
            subprocess.run(["true"], check=False)
        case "network":
            with socket.socket() as each:
                each.setblocking(False)
                each.connect_ex(("192.0.2.1", 9))
        case "memory":
            bytearray(8 << 30)
    return 0
