"""The ``offramp`` command: what a user asks of finished results and of checkpoints."""

from __future__ import annotations

import sys

from offramp.app.parser import make_parser
from offramp.machine.entry import run


def main(arguments: list[str] | None = None) -> int:
    """Run one subcommand and return its exit code: 2, and one line on stderr, for what a user can mend."""
    options = make_parser().parse_args(arguments)
    return run(lambda: options.run(options), "offramp", options.memory, "run the same command again")


if __name__ == "__main__":
    sys.exit(main())
