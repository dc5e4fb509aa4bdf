"""Disks and memory that are full, files that may not grow, folders that may not be written to."""

from __future__ import annotations

import os
import random
import resource
import shutil
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from importlib import import_module
from pathlib import Path

from tests.faults.kills import OFTEN, OUTPUTS, other_than, without_outputs
from tests.faults.project import Outcome, fork, start
from tests.faults.tally import Tally


def may_mount() -> bool:
    """Whether small file systems can be mounted."""
    return (
        os.geteuid() == 0 and subprocess.run(["unshare", "-m", "true"], capture_output=True).returncode == 0
    )


@contextmanager
def small_disk(folder: Path, megabytes: int) -> Iterator[Path]:
    """A file system of its own in memory."""
    folder.mkdir(parents=True)
    subprocess.run(["mount", "-t", "tmpfs", "-o", f"size={megabytes}m", "tmpfs", str(folder)], check=True)
    try:
        yield folder
    finally:
        subprocess.run(["umount", "-l", str(folder)], check=True)


def may_limit() -> bool:
    """Whether a file system with quotas can be made: btrfs keeps them itself, whatever the kernel has."""
    return may_mount() and shutil.which("mkfs.btrfs") is not None


@contextmanager
def disk_with_quota(folder: Path) -> Iterator[Path]:
    """A btrfs file system of its own, in a file; yields a subvolume of it, which can be given a quota."""
    folder.mkdir(parents=True)
    image = folder.with_suffix(".image")
    with open(image, "wb") as file:
        file.truncate(2**29)
    _quietly("mkfs.btrfs", "-q", str(image))
    _quietly("mount", "-o", "loop", str(image), str(folder))
    try:
        _quietly("btrfs", "quota", "enable", str(folder))
        _quietly("btrfs", "subvolume", "create", str(folder / "home"))
        yield folder / "home"
    finally:
        _quietly("umount", "-l", str(folder))
        image.unlink()


def _quietly(*command: str) -> str:
    """What a command printed; CalledProcessError where it fails."""
    return subprocess.run(command, check=True, capture_output=True, text=True).stdout


def _size(base: Path, stage: str) -> int:
    outputs = [base / name for name in OUTPUTS.get(stage, ())]
    files = [file for output in outputs for file in (output.rglob("*") if output.is_dir() else [output])]
    return sum(file.stat().st_size for file in files if file.is_file())


def full(base: Path, root: Path, wanted: dict[str, str], rng: random.Random, tally: Tally) -> None:
    """Let a stage run where only part of what it writes has room; then make room and run it again.

    ``root`` is on a small disk of its own.
    """
    stage = rng.choice(OFTEN)
    without_outputs(base, root, stage)
    filler = root / "filler"
    room = int(_size(base, stage) * rng.uniform(0, 0.9))
    # file systems count in pages, and what is left of one is no room for another file
    with open(filler, "wb") as file:
        os.posix_fallocate(file.fileno(), 0, max(1, shutil.disk_usage(root).free - room - 4096))
    done = start(root, stage).wait()
    filler.unlink()
    left = [str(path) for path in root.rglob(".*.partial")]
    wrong = f"left over: {left[:3]}" if left else None
    if done.code == 2:
        wrong = wrong or (
            None if _says_all(done.errors, ("free in",)) else "the message lacks file or free space"
        )
    elif done.code:
        wrong = f"ended with {done.code}"
    again = start(root, stage).wait()
    wrong = wrong or (f"then ended with {again.code}" if again.code else other_than(root, wanted))
    tally.count(f"{stage} with room for {room} bytes", done, again, wrong=wrong)


def over_quota(base: Path, root: Path, wanted: dict[str, str], rng: random.Random, tally: Tally) -> None:
    """Let a stage run where a quota leaves room for only part of what it writes; then without the quota.

    ``root`` lies in a subvolume that can be given one.
    """
    stage = rng.choice(OFTEN)
    without_outputs(base, root, stage)
    home, disk = root.parent, str(root.parent.parent)
    os.sync()
    used = int(_quietly("btrfs", "qgroup", "show", "--raw", "-f", str(home)).split()[-2])
    room = int(_size(base, stage) * rng.uniform(0, 0.9))
    group = "0/" + _quietly("btrfs", "inspect-internal", "rootid", str(home)).strip()
    _quietly("btrfs", "qgroup", "limit", str(used + room), group, disk)
    done = start(root, stage).wait()
    _quietly("btrfs", "qgroup", "limit", "none", group, disk)
    _then(root, stage, done, wanted, tally, f"{stage} with {room} bytes left of a quota", ("quota",))


def limited(base: Path, root: Path, wanted: dict[str, str], rng: random.Random, tally: Tally) -> None:
    """Run a stage under a limit on the size of a file, then without."""
    stage = rng.choice(OFTEN)
    without_outputs(base, root, stage)
    limit = int(4096 + rng.random() ** 2 * 60_000)

    def run() -> None:
        resource.setrlimit(resource.RLIMIT_FSIZE, (limit, limit))
        sys.argv = ["-m"]
        import_module(f"pipeline.{stage}").main()

    done = fork(root, run).wait()
    _then(root, stage, done, wanted, tally, f"{stage} with files of {limit} bytes at most", ("ulimit -f",))


def starved(base: Path, root: Path, wanted: dict[str, str], rng: random.Random, tally: Tally) -> None:
    """Run a stage that may take only so much more memory than its imports have, then without a limit."""
    stage = rng.choice(OFTEN)
    without_outputs(base, root, stage)
    room = int(rng.random() ** 2 * 60e6)

    def run() -> None:
        pages = int(Path("/proc/self/statm").read_text().split()[0])
        limit = pages * resource.getpagesize() + room
        resource.setrlimit(resource.RLIMIT_AS, (limit, limit))
        sys.argv = ["-m"]
        import_module(f"pipeline.{stage}").main()

    done = fork(root, run).wait()
    _then(root, stage, done, wanted, tally, f"{stage} with {room} bytes of memory", ("memory", "lower"))


def refused(base: Path, root: Path, wanted: dict[str, str], rng: random.Random, tally: Tally) -> None:
    """Run a stage where nothing can be written: on a read-only file system, or a file in a folder's place."""
    stage = rng.choice(OFTEN)
    without_outputs(base, root, stage)
    outputs = [name for name in OUTPUTS.get(stage, ()) if "/" in name] or ["build/code"]
    parent = root / Path(rng.choice(outputs)).parent
    what = rng.choice(("read-only", "file")) if may_mount() else "file"
    undo: Callable[[], object]
    if what == "read-only":
        target = rng.choice((root, parent if parent.is_dir() else root))
        subprocess.run(["mount", "--bind", str(target), str(target)], check=True)
        subprocess.run(["mount", "-o", "remount,ro,bind", str(target)], check=True)

        def undo() -> object:
            return subprocess.run(["umount", "-l", str(target)], check=True)
    else:
        aside = parent.with_name(parent.name + ".aside")
        if parent.exists():
            parent.rename(aside)
        parent.write_text("a file")

        def undo() -> object:
            parent.unlink()
            return aside.rename(parent) if aside.exists() else None

    done = start(root, stage).wait()
    undo()
    _then(root, stage, done, wanted, tally, f"{stage}, {what} at {parent.name}", ())


def _then(
    root: Path,
    stage: str,
    done: Outcome,
    wanted: dict[str, str],
    tally: Tally,
    name: str,
    words: tuple[str, ...],
) -> None:
    """Run the stage again, undisturbed, and count the trial."""
    again = start(root, stage).wait()
    left = f"then ended with {again.code}" if again.code else other_than(root, wanted)
    wrong = None
    if done.code == 2:
        wrong = None if _says_all(done.errors, words) else "the message lacks what it needs"
    elif done.code:
        wrong = f"ended with {done.code}"
    tally.count(name, done, again, wrong=wrong or left)


def _says_all(errors: list[str], words: tuple[str, ...]) -> bool:
    return len(errors) == 1 and all(word in errors[0] for word in words)
