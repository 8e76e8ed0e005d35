"""The command ``tandem-snn``."""

from __future__ import annotations

import sys
from collections.abc import Sequence


def main(arguments: Sequence[str] | None = None) -> int:
    """Runs the command line (default: ``sys.argv``) and returns its exit status. User errors are one line on stderr."""
    from ..errors import Interrupted, UserError, extra

    try:
        typer = extra("typer", "the command line")
        extra("rich", "the command line")
        from .app import app

        usage_error = typer.BadParameter.__mro__[2]  # ClickException, wherever this typer keeps click
        try:
            given = None if arguments is None else list(arguments)
            status = app(given, prog_name="tandem-snn", standalone_mode=False)
        except usage_error as error:
            return _fail(error.format_message(), error.exit_code)
        except typer.Exit as error:
            return int(error.exit_code)
        except typer.Abort:
            return _fail("interrupted", 130)
        return status if isinstance(status, int) else 0
    except KeyboardInterrupt:
        return _fail("interrupted", 130)
    except Interrupted as stopped:
        return _fail(str(stopped), 128 + stopped.signal)
    except UserError as error:
        return _fail(str(error), 2)
    except OSError as error:
        return _fail(str(error), 1)


def _fail(message: str, status: int) -> int:
    if message:  # there is none where the help was printed
        print("tandem-snn: " + " ".join(message.split()), file=sys.stderr)
    return status
