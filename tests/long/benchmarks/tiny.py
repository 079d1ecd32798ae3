"""The smallest WSGI application, and what the benchmarks ask of a worker."""

import os
import time


def app(environ, start_response):
    path = environ["PATH_INFO"]
    body = b"hi\n"
    if path == "/pid":
        body = str(os.getpid()).encode()
    elif path == "/sleep":
        time.sleep(float(environ["QUERY_STRING"]))
    elif path == "/exit":
        os._exit(0)
    elif path == "/watch":
        import gunicorn_grace  # Only here: plain gunicorn, which is measured too, loads none of it.

        while not gunicorn_grace.is_terminating():
            time.sleep(float(environ["QUERY_STRING"]))
        body = str(time.monotonic_ns()).encode()
    start_response("200 OK", [("Content-Type", "text/plain"), ("Content-Length", str(len(body)))])
    return [body]
