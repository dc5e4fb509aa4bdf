"""README.md and docs/*.md from docs/templates/.

    python -m docs              write the pages
    python -m docs --check      fail if they differ from what would be written

Templates name every figure by the file that holds it (docs/figures.py). A number in prose that comes from no
file is refused (docs/prose.py), and so is a page of which a figure is missing: then nothing is written.
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

from docs.pages import check_pages, write_pages
from offramp.errors import UserError

ROOT = Path(__file__).resolve().parents[1]


def main() -> None:
    parser = argparse.ArgumentParser(
        prog="python -m docs", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--check", action="store_true", help="fail if the pages are not up to date")
    arguments = parser.parse_args()
    try:
        if arguments.check:
            check_pages(ROOT)
            print("README.md and docs/*.md are up to date")
        else:
            for page in write_pages(ROOT):
                print(f"wrote {page}")
    except UserError as error:
        sys.exit(str(error))


if __name__ == "__main__":
    main()
