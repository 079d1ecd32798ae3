"""The report of a rehearsal: as text, as an HTML page and as a JSON document."""
