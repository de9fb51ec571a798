"""A first config for a data set, a teacher and a machine."""
