"""An application that takes long to import."""

import sys
import time

print("import begins", file=sys.stderr, flush=True)
time.sleep(40)


def app(environ, start_response):
    start_response("200 OK", [])
    return []
