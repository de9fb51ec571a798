"""Methods x seeds x pairs of student and teachers, at an equal budget, in one table."""
