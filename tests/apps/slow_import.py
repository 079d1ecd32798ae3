"""An application that takes long to import, and runs Python all the while, as an import does.

One long sleep would not do: a signal that comes just before its system call is not handled until
that returns, in CPython itself. ``inattentive_import`` is about that.
"""

import time

from speech import say

say("import begins")
for _ in range(4000):
    time.sleep(0.01)


def app(environ, start_response):
    start_response("200 OK", [])
    return []
