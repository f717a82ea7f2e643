"""How a script speaks to a person: one log, one progress bar, errors without a traceback."""

from __future__ import annotations

import logging
import math
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

from omegaconf.errors import OmegaConfBaseException
from rich.console import Console
from rich.logging import RichHandler
from rich.progress import (
    BarColumn,
    MofNCompleteColumn,
    Progress,
    ProgressColumn,
    Task,
    TextColumn,
    TimeRemainingColumn,
)
from rich.text import Text

from perpgym.envs.announce import announce_compiling

# a log file or a pipe has no width of its own
CONSOLE = Console(width=None if sys.stdout.isatty() else 140)
_LOG = logging.getLogger(__name__)


class _Told(logging.Formatter):
    """A message and its traceback, as far as they may be told."""

    def __init__(self, redact: Callable[[str], str]) -> None:
        super().__init__("%(message)s")
        self._redact = redact

    def format(self, record: logging.LogRecord) -> str:
        return self._redact(super().format(record))


def set_up_log(time_format: str = "%H:%M:%S", redact: Callable[[str], str] = str) -> None:
    """Every message of perpgym on the console, with this machine's time; warnings of libraries only.

    Args:
        time_format: of ``strftime``.
        redact: whatever is told passes it.
    """
    handler = RichHandler(console=CONSOLE, show_path=False, show_level=True, log_time_format=time_format)
    # rows of a live journal are for the log's file; a person reads a line a decision
    handler.addFilter(lambda record: record.name != "perpgym.journal")
    logging.basicConfig(level=logging.WARNING, handlers=[handler], force=True)
    handler.setFormatter(_Told(redact))
    logging.getLogger("perpgym").setLevel(logging.INFO)
    announce_compiling()


def python() -> str:
    """This interpreter as a person would type it: relative where it lies below the working folder."""
    here, path = Path.cwd(), Path(sys.prefix) / "bin" / "python"
    if not path.exists():
        return sys.executable
    return str(path.relative_to(here) if path.is_relative_to(here) else path)


def print_error(message: str) -> None:
    """One message in red, unbroken, so that a path or a command can be copied."""
    CONSOLE.print(Text(f"error: {message}", style="bold red"), soft_wrap=True)


@contextmanager
def errors_in_words() -> Iterator[None]:
    """Turn what users can mend into one message and exit code 1; anything else keeps its traceback."""
    try:
        yield
    except (ValueError, OSError, KeyError, ImportError, OmegaConfBaseException) as error:
        if _is_ours(error):
            print_error(_message(error))
            sys.exit(1)
        raise
    except KeyboardInterrupt:
        CONSOLE.print("stopped at once; what was saved before is on disk")
        sys.exit(130)


def _is_ours(error: BaseException) -> bool:
    """Whether the error was raised on purpose in perpgym, or is about a file or a setting."""
    if isinstance(error, OSError | OmegaConfBaseException):
        return True
    frame = error.__traceback__
    while frame is not None and frame.tb_next is not None:
        frame = frame.tb_next
    # a script's own name is __main__
    name = "" if frame is None else str(frame.tb_frame.f_globals.get("__name__", ""))
    return name.startswith("perpgym") or name == "__main__"


def _message(error: BaseException) -> str:
    if isinstance(error, KeyError) and error.args:
        return str(error.args[0])
    return str(error)


class StepsPerSecond(ProgressColumn):
    """Account steps per second."""

    def render(self, task: Task) -> Text:
        """The speed, or nothing before it is known."""
        speed = task.finished_speed or task.speed
        return Text("" if speed is None else f"{speed:,.0f} steps/s", style="progress.data.speed")


@contextmanager
def training_bar(
    title: str, total: int | None, done: int = 0
) -> Iterator[Callable[[int, float | None], None]]:
    """A bar with steps/s, time left and the newest net return on validation; yields its update.

    Without a ``total`` it shows that something happens, not how much is left.
    """
    columns = (
        TextColumn("{task.description}"),
        BarColumn(),
        TextColumn("{task.percentage:>3.0f} %"),
        StepsPerSecond(),
        TimeRemainingColumn(),
        TextColumn("{task.fields[validation]}"),
    )
    with Progress(*columns, console=CONSOLE, transient=False) as bar:
        task = bar.add_task(title, total=total, completed=done, validation="")

        def update(steps: int, validation_return: float | None) -> None:
            text = "" if validation_return is None else f"validation return {100 * validation_return:+.1f} %"
            bar.update(task, completed=steps if total is None else min(steps, total), validation=text)

        yield update


@contextmanager
def stage_bar(every_s: float = 5.0) -> Iterator[Callable[[str, int, int], None]]:
    """One line that says which stage is being worked on, and how far; yields (what, done, total) -> None.

    Args:
        every_s: seconds between lines of the log, which stand for the bar where no terminal shows it.
    """
    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
    with Progress(*columns, console=CONSOLE, transient=True) as bar:
        task = bar.add_task("", total=None)
        said_s = -math.inf

        def show(what: str, done: int, total: int) -> None:
            nonlocal said_s
            if bar.tasks[0].description != what:
                # the time left is that of the stage
                bar.reset(task, description=what, total=total, completed=done)
                bar.refresh()
            bar.update(task, completed=done)
            if not CONSOLE.is_interactive and time.monotonic() - said_s >= every_s:
                _LOG.info("%s: %s of %s", what, f"{done:,}", f"{total:,}")
                said_s = time.monotonic()

        yield show
