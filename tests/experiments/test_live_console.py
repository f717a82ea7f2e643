"""What a live run's console may tell."""

from __future__ import annotations

import logging
from collections.abc import Iterator

import pytest

from perpgym.envs.live.redact import REPLACED, Redactor
from perpgym.experiments.console import CONSOLE, set_up_log


@pytest.fixture
def log() -> Iterator[logging.Logger]:
    """The root's handlers are put back."""
    root = logging.getLogger()
    handlers, level = root.handlers[:], root.level
    yield logging.getLogger("perpgym.live")
    root.handlers[:], root.level = handlers, level


@pytest.mark.parametrize("is_redacted", [True, False])
def test_a_traceback_on_the_console_tells_no_secret(log: logging.Logger, is_redacted: bool) -> None:
    redact = Redactor(["a-secret-of-the-account"]).text
    set_up_log(**({"redact": redact} if is_redacted else {}))
    with CONSOLE.capture() as told:
        try:
            raise RuntimeError("GET /order?key=a-secret-of-the-account")
        except RuntimeError:
            log.exception("a request of %s has failed", "a-secret-of-the-account")
    text = told.get()
    assert "RuntimeError" in text
    assert ("a-secret-of-the-account" in text) is not is_redacted
    assert (REPLACED in text) is is_redacted
