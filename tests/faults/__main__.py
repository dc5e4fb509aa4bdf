"""Inject faults into the tiniest pipeline, and count what came of them.

    python -m tests.faults                 all of them, written to metrics/faults.json
    python -m tests.faults --sample        a few of each kind, written nowhere
    python -m tests.faults --only killed   one kind

It fails where a result was lost, a traceback was shown, or anything hung. A trial is named by its kind and
its number; both and the seed decide all that is random about it, but for moments in time.
"""

from __future__ import annotations

import argparse
import platform
import random
import sys
import tempfile
import time
from collections.abc import Callable
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path

from offramp.artifacts.files import write_json
from tests.conftest import REPOSITORY
from tests.faults import disks, kills, servers, tampering
from tests.faults.project import contents, make_project, preload, run_all
from tests.faults.tally import Tally

OUT = REPOSITORY / "metrics/faults.json"
Kind = Callable[[Path, Path, dict[str, str], random.Random, Tally], None]
SAME = "the next run gives the bytes of an undisturbed one"


@dataclass(frozen=True)
class Campaign:
    """How often a kind of fault is injected."""

    inject: Kind
    what: str
    promise: str
    trials: int
    sample: int
    disk: str = "any"
    """On which disk the project lies."""


CAMPAIGNS = {
    "killed": Campaign(kills.killed, "a stage killed, once to often in a row", SAME, 90, 8),
    "stopped": Campaign(
        kills.stopped, "a stage ended by Ctrl-C, SIGTERM or SIGHUP", f"one line; {SAME}", 40, 4
    ),
    "twice": Campaign(
        kills.twice, "a stage started beside another", f"one is refused and names the other; {SAME}", 20, 2
    ),
    "tampered": Campaign(
        tampering.tampered,
        "an artifact damaged or edited, then read",
        "refused by name, nothing else touched",
        330,
        40,
    ),
    "linked": Campaign(
        tampering.linked, "a link in the place of an artifact or a file", "read like what it links to", 15, 2
    ),
    "full": Campaign(
        disks.full, "a full disk", f"one line with file and free space; {SAME}", 40, 5, disk="small"
    ),
    "quota": Campaign(disks.over_quota, "a quota that is used up", f"one line; {SAME}", 20, 2, disk="quota"),
    "limited": Campaign(disks.limited, "a limit on the size of files", f"one line; {SAME}", 25, 3),
    "starved": Campaign(disks.starved, "no memory", f"one line with what to lower; {SAME}", 30, 3),
    "refused": Campaign(
        disks.refused, "a read-only folder, or a file in its place", f"one line; {SAME}", 25, 3
    ),
    "dead": Campaign(
        servers.dead, "a tracking server that is none", "said, and the results stay as they are", 12, 2
    ),
    "dying": Campaign(
        servers.dying, "a tracking server killed meanwhile", "said, and the results stay as they are", 3, 0
    ),
}


def main(words: list[str] | None = None) -> int:
    """Run the campaigns; 1 where a promise was broken."""
    parser = argparse.ArgumentParser(
        prog="python -m tests.faults",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--sample", action="store_true", help="a few of each kind")
    parser.add_argument("--only", choices=sorted(CAMPAIGNS), nargs="+", help="these kinds alone")
    parser.add_argument("--trials", type=int, help="so many of each kind")
    options = parser.parse_args(words)
    began = time.monotonic()
    preload()
    with tempfile.TemporaryDirectory(prefix="offramp-faults-") as folder:
        tallies = _all(options, Path(folder))
    seconds = time.monotonic() - began
    failures = [failure for tally in tallies.values() for failure in tally.failures]
    trials = sum(tally.trials for tally in tallies.values())
    print(f"{trials} faults in {seconds:.0f} s, {len(failures)} of them broke a promise")
    if not (options.sample or options.only or options.trials):
        write_json(
            OUT,
            {
                "seed": options.seed,
                "seconds": round(seconds),
                "machine": f"{platform.system()} {platform.machine()}",
                "trials": trials,
                "survived": sum(tally.survived for tally in tallies.values()),
                "lost": sum(tally.lost for tally in tallies.values()),
                "tracebacks": sum(tally.tracebacks for tally in tallies.values()),
                "hangs": sum(tally.hangs for tally in tallies.values()),
                "kinds": {name: tally.to_json() for name, tally in tallies.items()},
            },
        )
    return 1 if failures else 0


def _all(options: argparse.Namespace, folder: Path) -> dict[str, Tally]:
    """The tallies by kind, of faults injected into copies of a project made in ``folder``."""
    base = make_project(folder / "base")
    run_all(base)
    wanted, tallies = contents(base), {}
    with ExitStack() as stack:
        places = {"any": folder}
        if disks.may_mount():
            places["small"] = stack.enter_context(disks.small_disk(folder / "disk", 24))
        if disks.may_limit():
            places["quota"] = stack.enter_context(disks.disk_with_quota(folder / "quotas"))
        roots = {disk: make_project(place / "project") for disk, place in places.items()}
        for name, campaign in CAMPAIGNS.items():
            if options.only and name not in options.only:
                continue
            if campaign.disk not in roots:
                print(f"{name}: left out, since no such disk can be mounted here")
                continue
            tally = tallies[name] = Tally(campaign.what, campaign.promise)
            count = options.trials or (campaign.sample if options.sample else campaign.trials)
            began = time.monotonic()
            for number in range(count):
                rng = random.Random(f"{options.seed} {name} {number}")
                campaign.inject(base, roots[campaign.disk], wanted, rng, tally)
            print(
                f"{name}: {tally.survived} of {tally.trials} survived ({time.monotonic() - began:.0f} s)",
                flush=True,
            )
    return tallies


if __name__ == "__main__":
    sys.exit(main())
