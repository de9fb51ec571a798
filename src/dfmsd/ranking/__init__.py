"""Which of several teachers suits a student: predictors of the student's AP, measured before the run."""
