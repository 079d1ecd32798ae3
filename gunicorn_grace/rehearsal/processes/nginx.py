"""nginx as a balancer under test: its configuration and its reload."""

from __future__ import annotations

import os
import signal
from collections.abc import Sequence

from ..errors import RehearsalError
from ..load.wire import Address, show_address
from .balancer import Balancer, Setup, milliseconds


class Nginx(Balancer):
    """Open-source nginx. It has no active checks, so it learns from requests that fail and from a
    reload."""

    product = "nginx"
    install = "apt-get install nginx-light, or your system's own package"
    learns = "from requests that fail, because open-source nginx has no active health checks"
    main_file = "nginx.conf"

    @classmethod
    def config(
        cls, front: Address, folder: str, endpoints: Sequence[Address], setup: Setup
    ) -> dict[str, str]:
        """Return its only configuration file."""
        servers = "\n".join(
            f"        server {_nginx_server(e)} max_fails=1 fail_timeout=10s;" for e in endpoints
        )
        forwarded = (
            "            proxy_set_header X-Forwarded-For $proxy_add_x_forwarded_for;\n"
            "            proxy_set_header X-Forwarded-Proto $scheme;\n"
        )
        # If root starts nginx, its workers run as another user, who cannot open a UNIX socket in
        # this folder.
        user = "user root root;\n" if os.geteuid() == 0 else ""
        retry = "error timeout" if setup.retries else "off"

        def location(match: str, more: str = "") -> str:
            return f"""\
        location {match} {{
            proxy_pass http://instances;
            proxy_http_version 1.1;
            proxy_set_header Upgrade $http_upgrade;
            proxy_set_header Connection $upgrade_or_not;
            proxy_set_header Host $http_host;
{forwarded if setup.forwarded else ""}\
            proxy_connect_timeout {milliseconds(setup.connect_timeout)};    # 60s unless set
            proxy_read_timeout {milliseconds(setup.timeout)};
            proxy_next_upstream {retry};    # a POST only if it was not sent
{more}\
        }}
"""

        # The query is cut off, because nginx compares a location with the path only.
        path = (setup.stream_path or "").partition("?")[0]
        unbuffered = "            proxy_buffering off;\n"
        stream = location(f'= "{path}"', unbuffered) if path else ""
        text = f"""\
daemon off;
{user}\
worker_processes 1;
pid {folder}/nginx.pid;
error_log stderr warn;
events {{ worker_connections 1024; }}
http {{
    access_log off;
    client_body_temp_path {folder}/body;
    proxy_temp_path {folder}/proxy;
    fastcgi_temp_path {folder}/fastcgi;
    uwsgi_temp_path {folder}/uwsgi;
    scgi_temp_path {folder}/scgi;
    upstream instances {{
{servers}
        keepalive 16;
        keepalive_timeout {milliseconds(setup.idle)};    # 60s unless set
    }}
    map $http_upgrade $upgrade_or_not {{ default upgrade; "" ""; }}    # of WebSockets, of others
    server {{
        listen {_nginx_server(front)};
{stream}{location("/")}    }}
}}
"""
        return {cls.main_file: text}

    @property
    def command(self) -> list[str]:
        """The command line. Without ``-e``, nginx would first open the log path that it was built
        with."""
        options = (
            "-p",
            str(self.runtime_dir),
            "-e",
            "stderr",
            "-c",
            str(self.runtime_dir / self.main_file),
        )
        return [*self._prefix, self.executable, *options]

    def _prepare(self) -> None:
        super()._prepare()
        assert self._listener is not None
        # nginx passes listeners to its successor in a binary upgrade this way
        # (ngx_add_inherited_sockets). It takes the descriptor that has the address of a "listen".
        self.env["NGINX"] = f"{self._listener.fileno()};"

    def tell(self, endpoints: Sequence[Address]) -> None:
        """Write the configuration and reload it. New workers take the new connections, and the old
        ones finish their requests and exit.

        :raises RehearsalError: nginx runs behind a prefix command.
        """
        self._write(endpoints)
        pid = int((self.runtime_dir / "nginx.pid").read_text()) if not self._prefix else 0
        if pid == 0:
            raise RehearsalError("nginx behind a prefix command cannot be reloaded")
        os.kill(pid, signal.SIGHUP)


def _nginx_server(address: Address) -> str:
    return f"unix:{address}" if isinstance(address, str) else show_address(address)
