"""An application of tornado's own, which gunicorn's tornado worker serves without WSGI."""

from __future__ import annotations

import asyncio

from speech import say
from tornado.web import Application, RequestHandler


class Index(RequestHandler):
    def get(self) -> None:
        self.write("hello\n")


class Slow(RequestHandler):
    async def get(self) -> None:
        seconds = float(self.get_argument("s"))
        say("slow request begins")
        await asyncio.sleep(seconds)
        self.write(f"slept {seconds:g} s\n")


app = Application([("/", Index), ("/slow", Slow)])
