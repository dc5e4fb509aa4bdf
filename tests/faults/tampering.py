"""Artifacts that were damaged, edited or swapped for something else, and everything that reads them."""

from __future__ import annotations

import json
import os
import random
import shutil
import socket
from collections.abc import Callable
from pathlib import Path
from typing import Any

from offramp.artifacts.files import clear, hash_file
from offramp.artifacts.manifest import MANIFEST, digest_of
from tests.faults.project import Child, command, contents, restore, start
from tests.faults.tally import Tally

READERS: dict[str, tuple[str, ...]] = {
    "data": ("pretrain", "collect", "sweep", "evaluate", "suitability", "report", "offramp lineage data"),
    "models/lm": ("collect", "evaluate", "suitability", "offramp generate --prompt a --tokens 2 --full"),
    "states/calibration": (
        "train_exits",
        "offramp separation states/calibration --draws 20",
        "offramp low-rank --ranks 1 --tokens 50",
        "offramp lineage states/calibration",
    ),
    "states/test": (
        "sweep",
        "evaluate",
        "suitability",
        "offramp separation --draws 20",
        "offramp low-rank --ranks 1 --tokens 50",
    ),
    "models/exits": (
        "sweep",
        "evaluate",
        "offramp generate --prompt a --tokens 2",
        "offramp lineage models/exits",
    ),
    "routed": ("report", "offramp lineage routed", "offramp lineage metrics/routing.json"),
}
"""Who reads each artifact."""
Change = Callable[[Path, random.Random], None]


def _edit(artifact: Path, change: Callable[[dict[str, Any]], None], fitting: bool = True) -> None:
    """Change a manifest, and make its digest fit."""
    file = artifact / MANIFEST
    values = json.loads(file.read_text())
    values.pop("digest")
    change(values)
    if fitting:
        values["digest"] = digest_of(values)
    file.write_text(json.dumps(values))


def _instead(place: Path, rng: random.Random) -> None:
    """Something that is no regular file in a file's place."""
    clear(place)
    what = rng.choice(("pipe", "folder", "socket", "device", "loop", "nowhere"))
    if what == "pipe":
        os.mkfifo(place)
    elif what == "folder":
        place.mkdir()
    elif what == "socket":
        with socket.socket(socket.AF_UNIX) as endpoint:
            here = os.open(place.parent, os.O_RDONLY)
            endpoint.bind(f"/proc/self/fd/{here}/{place.name}")
            os.close(here)
    else:
        place.symlink_to({"device": "/dev/zero", "loop": place.name, "nowhere": "/nowhere"}[what])


def _file(artifact: Path, rng: random.Random) -> Path:
    return rng.choice(
        sorted(file for file in artifact.rglob("*") if file.is_file() and file.name != MANIFEST)
    )


def _written(text: str | bytes) -> Change:
    raw = text.encode() if isinstance(text, str) else text
    return lambda artifact, rng: (artifact / MANIFEST).write_bytes(raw) and None


def _without(artifact: Path, rng: random.Random) -> None:
    _edit(artifact, lambda values: values.pop(rng.choice(sorted(values))))


def _other_type(artifact: Path, rng: random.Random) -> None:
    def change(values: dict[str, Any]) -> None:
        values[rng.choice(sorted(values))] = rng.choice((None, [], 7, "x", {"a": {"b": []}}, -1, True))

    _edit(artifact, change)


def _other_meta(artifact: Path, rng: random.Random) -> None:
    def change(values: dict[str, Any]) -> None:
        names = [
            name for name in sorted(values["meta"]) if name not in ("inputs", "hidden", "label", "signals")
        ]
        name = rng.choice(names or ["window"])
        values["meta"][name] = rng.choice((None, "x", -3, [1], {}))

    _edit(artifact, change)


def _outside(artifact: Path, rng: random.Random) -> None:
    def change(values: dict[str, Any]) -> None:
        name = rng.choice(sorted(values["files"]))
        values["files"][rng.choice(("../x", "/etc/passwd", "a/../../x", ""))] = values["files"].pop(name)

    _edit(artifact, change)


def _garbage_that_fits(artifact: Path, rng: random.Random) -> None:
    file = _file(artifact, rng)
    file.write_bytes(
        rng.choice((b"", b"{}", rng.randbytes(999), file.read_bytes()[: file.stat().st_size // 2]))
    )

    def change(values: dict[str, Any]) -> None:
        name = str(file.relative_to(artifact))
        values["files"][name] = {"bytes": file.stat().st_size, "sha256": hash_file(file)}

    _edit(artifact, change)


def _flipped(artifact: Path, rng: random.Random) -> None:
    file = _file(artifact, rng)
    raw = bytearray(file.read_bytes())
    raw[rng.randrange(len(raw))] ^= 1 << rng.randrange(8)
    file.write_bytes(raw)


def _huge(artifact: Path, rng: random.Random) -> None:
    os.truncate(artifact / MANIFEST, 2**30)


def _extra(artifact: Path, rng: random.Random) -> None:
    file = artifact / rng.choice(("extra.bin", "deep/er/extra.bin", ".hidden"))
    file.parent.mkdir(parents=True, exist_ok=True)
    file.write_bytes(b"extra")


def _whole(artifact: Path, rng: random.Random) -> None:
    _instead(artifact, rng)


FITTING = "garbage in a file, manifest fitting"
CHANGES: dict[str, Change] = {
    "manifest missing": lambda artifact, rng: (artifact / MANIFEST).unlink(),
    "manifest empty": _written(""),
    "manifest a list": _written("[1, 2]"),
    "manifest a number": _written("1e999"),
    "manifest nested deeply": _written('{"meta":' * 100_000 + "1" + "}" * 100_000),
    "manifest nested": _written('{"meta":' * 40 + "1" + "}" * 40),
    "manifest binary": _written(bytes(range(256))),
    "manifest huge": _huge,
    "manifest no file": lambda artifact, rng: _instead(artifact / MANIFEST, rng),
    "manifest without a key, digest fitting": _without,
    "manifest with another type, digest fitting": _other_type,
    "meta with another type, digest fitting": _other_meta,
    "file named outside, digest fitting": _outside,
    FITTING: _garbage_that_fits,
    "byte flipped": _flipped,
    "file cut": lambda artifact, rng: os.truncate(_file(artifact, rng), 1),
    "file missing": lambda artifact, rng: _file(artifact, rng).unlink(),
    "file no file": lambda artifact, rng: _instead(_file(artifact, rng), rng),
    "file extra": _extra,
    "artifact no folder": _whole,
}


def _read(root: Path, reader: str) -> Child:
    return command(root, *reader.split()[1:]) if reader.startswith("offramp") else start(root, reader)


def _owns_up(root: Path, edited: str, now: dict[str, str], wanted: dict[str, str]) -> bool:
    """Whether results of numbers that nobody can tell from others name the artifact that was read.

    A file whose manifest was edited to fit is an artifact of its own, whose digest is ``edited``.
    """
    changed = [root / file for file in now if file.endswith(".json") and now[file] != wanted.get(file)]
    return any(edited in file.read_text(encoding="utf-8") for file in changed)


def tampered(base: Path, root: Path, wanted: dict[str, str], rng: random.Random, tally: Tally) -> None:
    """Damage an artifact and let something read it: it is refused by name, and nothing else is touched.

    A reader that does not need what was damaged may give what it always gives.
    """
    restore(base, root)
    artifact = rng.choice(sorted(READERS))
    reader, name = rng.choice(READERS[artifact]), rng.choice(sorted(CHANGES))
    CHANGES[name](root / artifact, rng)
    edited = None
    if name == FITTING:
        edited = json.loads((root / artifact / MANIFEST).read_text(encoding="utf-8"))["digest"]
    done = _read(root, reader).wait()
    clear(root / artifact)
    shutil.copytree(base / artifact, root / artifact)
    wrong = None
    if (now := contents(root)) != wanted and not (edited and _owns_up(root, edited, now, wanted)):
        wrong = "other results were changed"
    elif done.code == 2 and len(done.errors) != 1:
        wrong = "no message"
    elif done.code == 2 and artifact.split("/")[-1] not in done.errors[0]:
        wrong = "the message does not name the artifact"
    elif done.code not in (0, 1, 2) or (done.code == 1 and "lineage" not in reader):
        wrong = f"ended with {done.code}"
    tally.count(f"{artifact}, {name}, read by {reader}", done, wrong=wrong)


def linked(base: Path, root: Path, wanted: dict[str, str], rng: random.Random, tally: Tally) -> None:
    """Put a link in an artifact's or a file's place: what it points to counts, as DVC may link its cache."""
    restore(base, root)
    artifact = rng.choice(sorted(READERS))
    readers = [reader for reader in READERS[artifact] if "lineage" not in reader]
    reader = rng.choice(readers)
    place = root / artifact if rng.random() < 0.5 else _file(root / artifact, rng)
    elsewhere = root / "elsewhere"
    clear(elsewhere)
    place.rename(elsewhere)
    place.symlink_to(elsewhere)
    done = _read(root, reader).wait()
    wrong = f"ended with {done.code}" if done.code else None
    tally.count(f"{artifact} linked, read by {reader}", done, wrong=wrong)
