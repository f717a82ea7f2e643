"""Files that survive a crash: written whole or not at all, checked by their hash, free of pickled code."""

from __future__ import annotations

import hashlib
import io
import os
import pickle
import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch

_MAGIC = b"perpgym checkpoint 1\n"
_ARRAY = "__ndarray__"


class DamagedFileError(ValueError):
    """A file is not what its writer left: truncated, altered, or of another kind."""


def write_atomically(files: Mapping[Path, bytes]) -> None:
    """Replace every file by its new content, or leave all as they were.

    Everything is written and synced beside its place before the first file moves, so a disk that fills up
    costs nothing that was there.

    Raises:
        OSError: the disk is full or a folder not writable.
    """
    parts: dict[Path, Path] = {}
    try:
        for path, payload in files.items():
            path.parent.mkdir(parents=True, exist_ok=True)
            parts[path] = _write_part(path, payload)
        for path, part in parts.items():
            part.replace(path)
    except OSError as error:
        size = sum(len(payload) for payload in files.values()) / 1e6
        cause = f"cannot write {size:.1f} MB to {path} ({os.strerror(error.errno or 0)})"
        raise OSError(
            error.errno, f"{cause}; what was there before is intact: free some space and try again"
        ) from error
    finally:
        for part in parts.values():
            part.unlink(missing_ok=True)


def _write_part(path: Path, payload: bytes) -> Path:
    handle, name = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.", suffix=".part")
    part = Path(name)
    try:
        with os.fdopen(handle, "wb") as file:
            file.write(payload)
            file.flush()
            os.fsync(file.fileno())
    except OSError:
        part.unlink(missing_ok=True)
        raise
    return part


def write_checkpoint(path: Path, state: dict[str, Any]) -> None:
    """Write tensors, arrays, numbers, texts and containers of these, with their sha256 in front.

    Raises:
        OSError: as in :func:`write_atomically`.
    """
    buffer = io.BytesIO()
    torch.save(_pack(state), buffer)
    payload = buffer.getvalue()
    digest = hashlib.sha256(payload).hexdigest().encode()
    write_atomically({path: _MAGIC + digest + b"\n" + payload})


def read_checkpoint(path: Path, device: torch.device | str = "cpu") -> dict[str, Any]:
    """The inverse of :func:`write_checkpoint`; unpickles nothing but plain data.

    Raises:
        FileNotFoundError: there is no such file.
        DamagedFileError: it is truncated, altered, of another version or no checkpoint at all.
    """
    content = path.read_bytes()
    header = len(_MAGIC) + 65
    if not content.startswith(_MAGIC):
        raise DamagedFileError(
            f"{path} is no checkpoint of this version (it should start with {_MAGIC.decode().strip()!r}): "
            "resume with the perpgym that wrote it, or start a new run"
        )
    payload = content[header:]
    if content[len(_MAGIC) : header - 1] != hashlib.sha256(payload).hexdigest().encode():
        raise DamagedFileError(
            f"{path} is truncated or altered (its sha256 differs): resume from an older checkpoint of the run"
        )
    try:
        packed = torch.load(io.BytesIO(payload), map_location=device, weights_only=True)
    except (pickle.UnpicklingError, RuntimeError, EOFError) as error:
        raise DamagedFileError(f"{path} holds more than plain data and was not loaded: {error}") from error
    state: dict[str, Any] = _unpack(packed)
    return state


def _pack(value: Any) -> Any:
    """Arrays become tagged tensors: the only arrays that load without running code."""
    if isinstance(value, np.ndarray):
        return {_ARRAY: torch.from_numpy(value.copy())}
    if isinstance(value, np.generic):
        return value.item()
    if isinstance(value, dict):
        return {key: _pack(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return type(value)(_pack(item) for item in value)
    return value


def _unpack(value: Any) -> Any:
    if isinstance(value, dict):
        if set(value) == {_ARRAY}:
            return value[_ARRAY].cpu().numpy()
        return {key: _unpack(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return type(value)(_unpack(item) for item in value)
    return value
