"""One thin script per stage of dvc.yaml.

The library is imported from the ``src`` beside this folder, not from wherever it was installed: experiments
that DVC runs in a temporary copy of the repository must use that copy's code.

Threads that wait for each other sleep, unless the environment says otherwise. OpenMP would let them spin, for
milliseconds after every small operation: on cores that anything else uses too, a stage of many small ones,
such as train_exits, then takes several times as long. Results are the same.
"""

import os
import sys
from pathlib import Path

os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")  # read where torch is imported, so before that

sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "src"))

if sys.argv[0] == "-m":  # a stage is being started: torch's import takes seconds, in which Ctrl-C may come
    from offramp.machine.entry import quit_while_importing

    quit_while_importing("stage")
