"""``python -m dfmsd`` is ``dfmsd``."""

from dfmsd.cli import main

main()
