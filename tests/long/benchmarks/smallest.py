"""The smallest FastAPI application, and what the benchmarks ask of it."""

import asyncio

from fastapi import FastAPI, Request
from fastapi.responses import PlainTextResponse

app = FastAPI()


@app.get("/", response_class=PlainTextResponse)
async def index():
    return "hi\n"


@app.get("/sleep", response_class=PlainTextResponse)
async def sleep(request: Request):
    await asyncio.sleep(float(request.url.query))
    return "hi\n"
