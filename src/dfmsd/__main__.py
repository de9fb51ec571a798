"""``python -m dfmsd`` is ``dfmsd``."""

from dfmsd.cli.main import main

main()
