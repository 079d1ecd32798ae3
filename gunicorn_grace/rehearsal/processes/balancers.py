"""The balancers that a rehearsal can put in front of its instances."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager

from ..kubernetes.routing import EndpointTable
from ..load.wire import Address
from .balancer import Balancer, Setup
from .envoy import Envoy
from .haproxy import HAProxy
from .nginx import Nginx

PRODUCTS: Mapping[str, type[Balancer]] = {
    product.product: product for product in (Envoy, HAProxy, Nginx)
}


@contextmanager
def in_front(
    balancer: Balancer | None, table: EndpointTable, tell: Callable[[str], None] = lambda line: None
) -> Iterator[EndpointTable]:
    """Run ``balancer`` while the block runs. It follows ``table``.

    The block gets a table that routes to the balancer; without a balancer, ``table`` itself.

    :raises InstanceFailed: see ``Balancer.start`` and ``Balancer.following``.
    """
    if balancer is None:
        yield table
        return
    with balancer:
        tell(f"through {balancer.product}, which learns {balancer.learns}")
        front = EndpointTable()
        front.add(balancer.address)
        with balancer.following(table):
            yield front


def show_config(product: str, instances: int, setup: Setup | None = None) -> str:
    """Return the configuration files of a product as text, with example addresses.

    :param product: a key of ``PRODUCTS``.
    :param instances: the number of instances.
    :param setup: its settings; None for the defaults.
    """
    endpoints: list[Address] = [("127.0.0.1", 8001 + number) for number in range(instances)]
    files = PRODUCTS[product].config(
        ("127.0.0.1", 8080), f"/run/{product}", endpoints, setup or Setup()
    )
    return "\n".join(f"# {name}\n{text}" for name, text in files.items())
