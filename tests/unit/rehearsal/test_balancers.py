"""The configuration of the balancers: what it says of instances, and of what a user may leave
out."""

from __future__ import annotations

import json
from typing import Any

import pytest
import yaml

from gunicorn_grace.rehearsal.errors import InstanceFailed, PlanFailed
from gunicorn_grace.rehearsal.kubernetes.routing import EndpointTable
from gunicorn_grace.rehearsal.plan import Plan
from gunicorn_grace.rehearsal.processes.balancer import Balancer, Setup
from gunicorn_grace.rehearsal.processes.balancers import PRODUCTS, in_front, show_config
from gunicorn_grace.rehearsal.processes.envoy import Envoy
from gunicorn_grace.rehearsal.processes.haproxy import HAProxy
from gunicorn_grace.rehearsal.processes.nginx import Nginx

pytestmark = pytest.mark.once

FRONT = ("127.0.0.1", 8080)
ENDPOINTS = [("127.0.0.1", 8001), ("::1", 8002), "/run/app.sock"]

products = pytest.mark.parametrize("product", PRODUCTS.values(), ids=PRODUCTS)


def main_file(product: type[Balancer], **setup: Any) -> str:
    return product.config(FRONT, "/run/x", ENDPOINTS, Setup(**setup))[product.main_file]


def test_envoy_gets_yaml_and_its_endpoints_apart() -> None:
    """The bootstrap is YAML that names no instance; the file that is watched holds each of them, of
    every family."""
    files = Envoy.config(FRONT, "/run/x", ENDPOINTS, Setup(interval=0.5, path="/ready"))
    (cluster,) = yaml.safe_load(files["envoy.yaml"])["static_resources"]["clusters"]
    assert (
        cluster["eds_cluster_config"]["eds_config"]["path_config_source"]["path"]
        == "/run/x/endpoints.json"
    )
    (check,) = cluster["health_checks"]
    assert (check["interval"], check["no_traffic_interval"]) == ("0.5s", "0.5s"), (
        "or it asks once a minute when idle"
    )
    assert check["http_health_check"] == {"path": "/ready"}
    assert "8001" not in files["envoy.yaml"]
    (assignment,) = json.loads(files["endpoints.json"])["resources"]
    found = [host["endpoint"]["address"] for host in assignment["endpoints"][0]["lb_endpoints"]]
    assert found == [
        {"socket_address": {"address": "127.0.0.1", "port_value": 8001}},
        {"socket_address": {"address": "::1", "port_value": 8002}},
        {"pipe": {"path": "/run/app.sock"}},
    ]


@products
def test_a_stream_has_a_place_of_its_own(product: type[Balancer]) -> None:
    """What cuts off slow responses, or holds them back, is lifted for its path alone, and for a
    path with a query too."""
    plain, stream = main_file(product), main_file(product, stream_path="/events?all=1")
    assert "/events" not in plain
    if product is not HAProxy:  # its limit is that of silence
        assert "/events" in stream
        assert "all=1" not in stream


def test_no_endpoint_is_a_file_of_endpoints_too() -> None:
    """When the last instance is forgotten, what Envoy reads is still JSON."""
    (assignment,) = json.loads(Envoy.config(FRONT, "/run/x", [], Setup())["endpoints.json"])[
        "resources"
    ]
    assert assignment["endpoints"] == [{"lb_endpoints": []}]


def test_haproxy_gets_a_server_for_each_instance() -> None:
    """Each has a name of its own, made from its address."""
    text = main_file(HAProxy, interval=0.25, path="/ready")
    servers = [line.split() for line in text.splitlines() if line.startswith("    server ")]
    assert [server[2] for server in servers] == [
        "127.0.0.1:8001",
        "[::1]:8002",
        "unix@/run/app.sock",
    ]
    assert len({server[1] for server in servers}) == 3
    assert "default-server check inter 250ms fall 1 rise 1 pool-purge-delay 1000ms" in text
    assert "uri /ready " in text


def test_nginx_gets_a_server_for_each_instance() -> None:
    """One failure takes an instance out, as there are no checks that could."""
    text = main_file(Nginx)
    for server in ("127.0.0.1:8001", "[::1]:8002", "unix:/run/app.sock"):
        assert f"        server {server} max_fails=1 fail_timeout=10s;\n" in text


@products
def test_forwarding_headers_can_be_left_out(product: type[Balancer]) -> None:
    """With ``forwarded`` each product says who asked; without it, none of them says a word."""
    said = {
        "envoy": "use_remote_address: true",
        "haproxy": "option forwardfor",
        "nginx": "X-Forwarded-For",
    }
    assert said[product.product] in main_file(product)
    assert said[product.product] not in main_file(product, forwarded=False)


@products
def test_retries_can_be_left_out(product: type[Balancer]) -> None:
    """Without retries, a request whose connection failed has failed."""
    said = {
        "envoy": "retry_policy:",
        "haproxy": "retries 3",
        "nginx": "proxy_next_upstream error timeout;",
    }
    assert said[product.product] in main_file(product)
    assert said[product.product] not in main_file(product, retries=0)


@products
def test_a_product_that_is_missing_says_how_to_get_it(
    product: type[Balancer], monkeypatch: pytest.MonkeyPatch
) -> None:
    """The error names the option, the product and the way to it; the plan finds out before anything
    is started."""
    name = product.product
    monkeypatch.setattr(product, "product", f"{name}-that-is-nowhere")
    with pytest.raises(
        PlanFailed, match=f"--through {name}-that-is-nowhere: it is not installed: .*install"
    ):
        Plan("app:app", through=name).check()


def test_a_product_that_nobody_knows_is_no_plan() -> None:
    """The error names those that there are."""
    with pytest.raises(PlanFailed, match="through 'traefik': choose one of envoy, haproxy, nginx"):
        Plan("app:app", through="traefik").check()


@products
def test_the_configuration_is_shown_without_the_product(
    product: type[Balancer], monkeypatch: pytest.MonkeyPatch
) -> None:
    """What is printed are the very files, with addresses for an example."""
    name = product.product
    monkeypatch.setattr(product, "find", lambda: None)
    shown = show_config(name, 2)
    assert shown.startswith(f"# {product.main_file}\n")
    assert all(part in shown for part in ("8080", "8001", "8002", f"/run/{name}"))
    assert "8003" not in shown


def test_without_a_balancer_the_table_is_the_way() -> None:
    """Nothing stands in front: the load gets the endpoint table itself."""
    table = EndpointTable()
    with in_front(None, table) as front:
        assert front is table


@pytest.mark.parametrize(
    ("line", "more"),
    [
        (
            "[ALERT]    (7) : config : parsing [/x/haproxy.cfg:7] : unexpected character '-' in "
            "'timeout connect'",
            "[ALERT]    (7) : config : Fatal errors found in configuration.",
        ),
        ("2026/11/25 10:12:39 [warn] 7#7: x\nnginx: [emerg] invalid value in /x/nginx.conf:9", ""),
        (
            "[2026-11-25 10:12:14.090][7][critical][main] [source/server/server.cc:429] error: no "
            "such field",
            "x",
        ),
    ],
)
def test_the_cause_is_found_in_what_a_balancer_prints(line: str, more: str) -> None:
    """The line that says what is wrong goes into the first line of the error, not the last one that
    was printed."""
    assert line.splitlines()[-1] in InstanceFailed("it ended", f"{line}\n{more}\n").line
