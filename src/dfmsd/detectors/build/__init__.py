"""Architectures that dfmsd builds: a backbone, a neck and a head."""
