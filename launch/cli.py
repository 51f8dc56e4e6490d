"""How every command starts and how it fails: one line, exit status 2, never a traceback for wrong input."""

import os
import sys
from collections.abc import Callable, Sequence
from typing import NoReturn

from absl import app, flags, logging

from launch.engine.stopping import Stopped
from launch.errors import InputError
from launch.storage.durable import StorageError

WRONG_INPUT = 2
CANNOT_WRITE = 74  # EX_IOERR
INTERRUPTED = 130  # what a shell reports for a program ended by Ctrl-C


def run_cli(main: Callable[[list[str]], int | None], argv: Sequence[str] | None = None) -> None:
    """Parse the flags, call `main(positional arguments)`, and exit with its status.

    `InputError` and wrong flags become `error: ...` on one line of stderr and exit status 2. A reader that goes away
    (`| head`) ends the program quietly. `--help` and `--helpfull` are absl's, with exit status 0.
    """
    logging.set_verbosity(logging.WARNING)  # libraries tell much at INFO; --verbosity=0 brings it back
    app.run(lambda arguments: _guarded(main, arguments), argv=list(argv or sys.argv), flags_parser=_parse)


def refuse_arguments(arguments: Sequence[str]) -> None:
    """Refuse words that are no flags, in a command that takes none; `--flag value` without `=` comes to that."""
    if arguments:
        raise InputError(f"'{arguments[0]}' is not a flag; flags are written --name=value")


def _parse(argv: list[str]) -> list[str]:
    try:
        return flags.FLAGS(argv)
    except flags.Error as error:
        _fail(error)
    except SystemExit:  # a help flag has printed its text; absl calls that status 1
        sys.exit(0)
    except BrokenPipeError:
        _leave_the_reader()


def _guarded(main: Callable[[list[str]], int | None], arguments: list[str]) -> NoReturn:
    try:
        status = main(arguments[1:]) or 0
        sys.stdout.flush()
    except InputError as error:
        _fail(error)
    except Stopped as stopped:
        sys.exit(stopped.status)
    except StorageError as error:
        print("error:", error, file=sys.stderr)
        sys.exit(CANNOT_WRITE)
    except KeyboardInterrupt:
        sys.exit(INTERRUPTED)
    except BrokenPipeError:
        _leave_the_reader()
    sys.exit(status)


def _leave_the_reader() -> NoReturn:
    # Python flushes stdout once more at exit, which would raise again and print.
    os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
    sys.exit(0)


def _fail(error: Exception) -> NoReturn:
    print("error:", " ".join(str(error).split()), file=sys.stderr)
    sys.exit(WRONG_INPUT)
