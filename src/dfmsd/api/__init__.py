"""The functions of ``import dfmsd``, one for each command of ``dfmsd`` with the same parameters."""
