from __future__ import annotations

import os
import signal
import threading

import pytest

from tinydet._internal.interrupt import deferred_interrupt


def test_ctrl_c_is_raised_after_the_block() -> None:
    done = []
    with pytest.raises(KeyboardInterrupt), deferred_interrupt():  # noqa: PT012 - the block is what is tested
        os.kill(os.getpid(), signal.SIGINT)
        done.append("row")
    assert done == ["row"]
    assert signal.getsignal(signal.SIGINT) is signal.default_int_handler


def test_an_ignored_ctrl_c_stays_ignored() -> None:
    before = signal.signal(signal.SIGINT, signal.SIG_IGN)
    try:
        with deferred_interrupt():
            os.kill(os.getpid(), signal.SIGINT)
        assert signal.getsignal(signal.SIGINT) is signal.SIG_IGN
    finally:
        signal.signal(signal.SIGINT, before)


def test_nothing_happens_outside_the_main_thread() -> None:
    done = []

    def work() -> None:
        with deferred_interrupt():
            done.append("row")

    thread = threading.Thread(target=work)
    thread.start()
    thread.join()
    assert done == ["row"]
