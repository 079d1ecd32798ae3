"""The load of a rehearsal: requests, when they are sent, and what became of each."""
