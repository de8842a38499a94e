"""Trains a model: `python train.py [--config experiments/NAME.py] [key.sub=value …]`."""

import sys

from abstractinator.cli.main import main

if __name__ == "__main__":
    # Without --config, the settings are those of config.py in the current folder.
    sys.exit(main(["train", *sys.argv[1:]]))
