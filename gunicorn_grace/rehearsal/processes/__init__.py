"""The processes of a rehearsal: gunicorn and the balancers, and the code that ends all of them."""
