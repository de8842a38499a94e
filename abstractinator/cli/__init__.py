"""The command line; one file a command. What a command needs is imported when it runs, so that help is fast."""

from __future__ import annotations

import os
import sys
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import argparse

    Commands = argparse._SubParsersAction[argparse.ArgumentParser]

CHECKPOINT_HELP = "a checkpoint_step*.pt, or a folder of them: the newest"


def called(command: str) -> str:
    """How the command was called: by its script in the project's folder, or as installed."""
    script = os.path.basename(sys.argv[0])
    return f"python {script}" if script == f"{command}.py" else f"abstractinator {command}"
