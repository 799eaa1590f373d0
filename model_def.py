"""What torchrun and clusters execute: `python model_def.py CONFIG ...` is `gaeanet train CONFIG ...`.

On a Determined cluster there is no CONFIG: the submitted file is it. Another command of gaeanet that trains
(`model_def.py search ...`) is named first.
"""

import sys

from gaeanet.cli.main import main

COMMANDS = ("train", "search")

if __name__ == "__main__":
    arguments = sys.argv[1:]
    sys.exit(main(arguments if arguments[:1] and arguments[0] in COMMANDS else ["train", *arguments]))
