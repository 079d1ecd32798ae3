"""An application that takes long to import."""

import time

from speech import say

say("import begins")
time.sleep(40)


def app(environ, start_response):
    start_response("200 OK", [])
    return []
