"""Evaluates a model: `python evaluate.py --model_args checkpoint=checkpoints --tasks lambada_openai,hellaswag`."""

import sys

from abstractinator.cli.main import main

if __name__ == "__main__":
    sys.exit(main(["evaluate", *sys.argv[1:]]))
