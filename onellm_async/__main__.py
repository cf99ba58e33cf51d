"""``python -m onellm_async`` is the command ``onellm-async``."""

import sys

from onellm_async.cli import main

if __name__ == "__main__":
    sys.exit(main())
