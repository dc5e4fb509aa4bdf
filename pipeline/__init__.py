"""One thin script per stage of dvc.yaml.

The library is imported from the ``src`` beside this folder, not from wherever it was installed: experiments
that DVC runs in a temporary copy of the repository must use that copy's code.
"""

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "src"))

if sys.argv[0] == "-m":  # a stage is being started: torch's import takes seconds, in which Ctrl-C may come
    from offramp.machine.entry import quit_while_importing

    quit_while_importing("stage")
