"""The ``offramp`` command: what a user asks of finished results. Training and evaluation are DVC's to run."""

from __future__ import annotations

import sys

from offramp.app.parser import make_parser
from offramp.errors import UserError, memory_for


def main(arguments: list[str] | None = None) -> int:
    """Run one subcommand and return its exit code.

    A UserError becomes a message on stderr, without a traceback, and the code 2.
    """
    options = make_parser(__doc__).parse_args(arguments)
    try:
        with memory_for("offramp", options.memory):
            return options.run(options)
    except UserError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2


if __name__ == "__main__":
    sys.exit(main())
