"""Keeps what must not be told out of everything that is told."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from typing import Any

REPLACED = "[secret]"
# variables whose values are secret, whoever set them
_NAMES = re.compile(r"(KEY|SECRET|TOKEN|PASSWORD|PASSPHRASE|ALERTS)$", re.IGNORECASE)
_FIELDS = re.compile(
    r"^(.*secret|.*token|api_?key|x-mbx-apikey|listen_?key|signature|password|passphrase|authorization)$",
    re.IGNORECASE,
)
# the same where they stand inside a text: in an address, a header, or a printed dict
_INSIDE = re.compile(
    r"""((?:signature|listenKey|api_?key|x-mbx-apikey|secret|token|password)['"]?\s*[=:]\s*['"]?|bearer\s+)"""
    r"""[^\s'"&,;}]+""",
    re.IGNORECASE,
)
_USER = re.compile(r"(://)[^/\s:@]*:[^/\s@]*@")
_SHORTEST = 8
# of this process, the newest ones: an exchange gives a new key with every connection
_MOST_LEARNED = 64
_learned: tuple[str, ...] = ()


def learn(secret: str) -> None:
    """A secret that came up on the way, e.g. the key of a stream: every redactor hides it from now on."""
    global _learned
    if secret and secret not in _learned:
        # a new tuple each time: another thread may be reading the old one
        _learned = (*_learned, secret)[-_MOST_LEARNED:]


def secrets_of(environment: Mapping[str, str]) -> set[str]:
    """Values of the variables that are named like secrets, and the parts of addresses among them."""
    values = {value for name, value in environment.items() if _NAMES.search(name)}
    parts = {part for value in values for part in re.split(r"[\s,;/@:?&=]+", value)}
    # short words occur everywhere and hide nothing
    return {text for text in values | parts if len(text) >= _SHORTEST}


class Redactor:
    """Replaces secrets in whatever is going to be written.

    Args:
        secrets: exact texts, beside those of :func:`learn`; what looks like a secret is replaced unnamed.
    """

    def __init__(self, secrets: Iterable[str] = ()) -> None:
        # a secret that contains another goes first
        longest_first = sorted({s for s in secrets if s}, key=len, reverse=True)
        self._exact = re.compile("|".join(map(re.escape, longest_first))) if longest_first else None

    def text(self, text: str) -> str:
        """A text without secrets."""
        if self._exact is not None:
            text = self._exact.sub(REPLACED, text)
        for secret in _learned:
            text = text.replace(secret, REPLACED)
        return _INSIDE.sub(rf"\1{REPLACED}", _USER.sub(rf"\1{REPLACED}@", text))

    def value(self, value: Any) -> Any:
        """The same for JSON types, also by the names of fields."""
        if isinstance(value, str):
            return self.text(value)
        if isinstance(value, Mapping):
            return {
                str(key): REPLACED if _FIELDS.match(str(key)) else self.value(item)
                for key, item in value.items()
            }
        if isinstance(value, list | tuple):
            return [self.value(item) for item in value]
        return value
