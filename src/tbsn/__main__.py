"""The program from its first moment on: Ctrl-C ends it in silence while it starts, too."""

import signal
import sys


def run() -> None:
    """`tbsn.cli.run`, the import of which takes a while."""
    try:
        from tbsn import cli

        cli.run()
    except KeyboardInterrupt:
        sys.exit(128 + signal.SIGINT)


if __name__ == "__main__":
    run()
