"""What torchrun or a cluster executes: `python model_def.py CONFIG ...` is `gaeanet train CONFIG ...`."""

import sys

from gaeanet.cli import main

if __name__ == "__main__":
    sys.exit(main(["train", *sys.argv[1:]]))
