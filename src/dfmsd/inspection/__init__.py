"""What a data set holds: `dfmsd data`."""
