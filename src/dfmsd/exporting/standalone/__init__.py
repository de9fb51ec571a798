"""Files that an export copies into a folder of its own; they import nothing of dfmsd."""
