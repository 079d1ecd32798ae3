"""The connection behind an ASGI request, for the trigger alone. Runs in workers.

A scope names addresses, but a proxy's header or PROXY line may have set them, and a UNIX socket has
none. Only the socket proves which process sent the request. The server's ``send`` leads to the
socket: it is a method of uvicorn's cycle (0.20 to 0.54), and a function inside a method of
gunicorn's protocol (24.1 to 27.0), for HTTP/2 too. If no socket is found, the trigger is refused.
"""

from __future__ import annotations

import _socket
import asyncio
import contextlib
import threading
from collections.abc import Callable, Iterator, MutableMapping
from typing import Any, TypeVar

from .connections import duplicate_of

_T = TypeVar("_T")


@contextlib.contextmanager
def connection_in(
    environ: dict[str, Any], scope: MutableMapping[str, Any], send: Any
) -> Iterator[None]:
    """Put a duplicate of the connection into the environ, under the key that WSGI uses, until the
    context ends. The environ stays as it is if the connection cannot be found.

    :param environ: the parts of the request that the trigger looks at.
    :param scope: the request's scope.
    :param send: the server's own ``send``.
    """
    conn = _duplicate_behind(_transport(send))
    if conn is None:
        yield
        return
    with contextlib.closing(conn):
        with contextlib.suppress(OSError):  # The peer hung up.
            peer, client = conn.getpeername(), scope.get("client")
            if isinstance(peer, tuple) and (client is None or tuple(client) != peer[:2]):
                # gunicorn sets this for WSGI when the connection began with a PROXY line.
                environ["PROXY_PROTOCOL"] = str(client)
        environ["gunicorn.socket"] = conn
        yield


def _transport(send: Any) -> Any:
    owner = getattr(send, "__self__", None)
    names = getattr(getattr(send, "__code__", None), "co_freevars", ())
    if owner is None and "self" in names:
        with contextlib.suppress(ValueError):  # The variable has no value.
            owner = send.__closure__[names.index("self")].cell_contents
    return getattr(owner, "transport", None)


def _duplicate_behind(transport: Any) -> _socket.socket | None:
    try:
        return duplicate_of(transport.get_extra_info("socket").fileno())
    except (AttributeError, OSError, TypeError, ValueError):
        return None


async def in_a_thread(function: Callable[[], _T]) -> _T:
    """Call a function in a thread of its own, because it may take too long for the event loop. The
    loop's own thread pool is left to the application."""
    loop = asyncio.get_running_loop()
    future: asyncio.Future[_T] = loop.create_future()

    def tell(result: Any, error: BaseException | None) -> None:
        if future.done():  # The request has been cancelled.
            return
        if error is not None:
            future.set_exception(error)
        else:
            future.set_result(result)

    def run() -> None:
        result, error = None, None
        try:
            result = function()
        except Exception as raised:
            error = raised
        with contextlib.suppress(RuntimeError):  # The loop has ended.
            loop.call_soon_threadsafe(tell, result, error)

    threading.Thread(target=run, name="gunicorn-grace trigger", daemon=True).start()
    return await future
