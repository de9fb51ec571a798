"""The command line, ``dfmsd``."""
