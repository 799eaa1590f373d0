"""`python -m gaeanet.cli`: the command line where no script is installed."""

import sys

from gaeanet.cli.main import main

sys.exit(main())
