"""The program from its first moment on: Ctrl-C ends it in silence while it starts, too."""

import os
import signal
import sys


def run() -> None:
    """`tbsn.cli.run`, the import of which takes a while."""
    _open_standard_streams()
    try:
        from tbsn import cli

        cli.run()
    except KeyboardInterrupt:
        sys.exit(128 + signal.SIGINT)


def _open_standard_streams() -> None:
    """Nothing in place of those that are closed, as a daemon's may be: else a photo takes their number."""
    while (number := os.open(os.devnull, os.O_RDWR)) <= 2:
        pass
    os.close(number)
    for name, mode in (("stdin", "r"), ("stdout", "w"), ("stderr", "w")):
        if getattr(sys, name) is None:
            setattr(sys, name, open(os.devnull, mode))  # noqa: SIM115 (for as long as the process lasts)


if __name__ == "__main__":
    run()
