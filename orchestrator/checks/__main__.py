"""Write docs/checks.md to stdout: `python -m orchestrator.checks > docs/checks.md`."""

import sys

from orchestrator.checks.catalogue import markdown

sys.stdout.write(markdown())
