"""The processes of a rehearsal: gunicorn, the balancers, and how every one of them is ended."""
