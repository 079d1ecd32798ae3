"""The load of a rehearsal: the requests, their schedule and their outcomes."""
