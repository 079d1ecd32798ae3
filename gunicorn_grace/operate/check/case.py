"""One container that runs gunicorn, with everything that a rule may look at."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass

from ..manifest import Action, Container, Workload
from ..manifest_yaml import Table
from ..routers import Router
from .launch import Launch
from .seen import Seen

DOWN = "down=true"


@dataclass(frozen=True)
class Case:
    """A container of a workload.

    :ivar workload: the workload.
    :ivar container: the container.
    :ivar launch: how its command starts gunicorn; None if the image starts it.
    :ivar seen: the settings in use, as far as they are seen.
    :ivar others: the other objects of the input, each with the name of its file.
    :ivar lags: the routers in front.
    """

    workload: Workload
    container: Container
    launch: Launch | None
    seen: Seen
    others: Sequence[tuple[str, Table]] = ()
    lags: Sequence[Router] = ()

    @property
    def has_plugin(self) -> bool:
        """Whether something in the input shows that the plugin is loaded."""
        return bool(self.seen.plugin)

    @property
    def is_knative(self) -> bool:
        """Whether Knative makes the pods. It then also sets their period and hooks."""
        return self.workload.kind == "Service"

    @property
    def is_cloud_run(self) -> bool:
        """Whether the service is for Cloud Run, which uses Knative's format."""
        return is_cloud_run(self.workload.document)

    def line(self, *keys: str, of: Table | None = None) -> int:
        """Return the line of the first of these keys that exists; without any, the line where the
        table begins.

        :param keys: the keys.
        :param of: the table; the container by default.
        """
        table = self.container.table if of is None else of
        return next((table.lines[key] for key in keys if key in table.lines), table.line)

    @property
    def period(self) -> int:
        """Seconds until SIGKILL."""
        return self.workload.period

    @property
    def period_line(self) -> int:
        """The line of the period; where the workload begins if the period is not set."""
        lines = self.workload.pod.lines
        return lines.get("terminationGracePeriodSeconds", self.workload.line)

    @property
    def hook(self) -> Action | None:
        """The preStop hook."""
        return self.container.pre_stop

    @property
    def is_trigger(self) -> bool:
        """Whether the hook begins the plugin's shutdown."""
        if self.hook is None:
            return False
        told = " ".join((*self.hook.command, self.hook.path))
        return "gunicorn-grace prestop" in told or DOWN in told

    @property
    def slept(self) -> float:
        """The seconds that the hook sleeps at least. Only literal numbers of seconds are found."""
        hook = self.hook
        if hook is None:
            return 0.0
        if hook.kind == "sleep":
            return hook.seconds
        if hook.kind != "exec":
            return 0.0
        text = " ".join(hook.command)
        found = re.findall(r"(?:^|[\s;&|/'\"])sleep\s+([0-9]+(?:\.[0-9]+)?)(s|m|h)?\b", text)
        units = {"": 1.0, "s": 1.0, "m": 60.0, "h": 3600.0}
        slept = [float(number) * units[unit] for number, unit in found]
        # With a branch or a loop it is not known which of the sleeps run. At least one does.
        is_plain = not re.search(r"\b(if|while|until|for|case)\b|\|\||(?<!&)&(?!&)", text)
        return sum(slept) if is_plain else min(slept, default=0.0)

    @property
    def ports(self) -> set[int] | None:
        """The ports on which gunicorn listens; None if they are not known."""
        if self.seen.binds is None:
            return None
        found = set()
        for bind in self.seen.binds:
            if bind.startswith(("unix:", "fd:")):
                continue
            port = bind.rpartition(":")[2] if ":" in bind else "8000"
            if not (port.isascii() and port.isdecimal()):
                return None
            found.add(int(port))
        return found

    @property
    def others_ports(self) -> dict[int, str]:
        """The ports that the other containers of the pod declare, each with the container's
        name."""
        found = {
            port: container.name
            for container in self.workload.containers
            if container is not self.container
            for port in container.ports.values()
        }
        # A sidecar may also be an init container that is restarted.
        starters = self.workload.pod.get("initContainers")
        for item in starters if isinstance(starters, list) else []:
            declared = item.get("ports") if isinstance(item, Table) else None
            for port in declared if isinstance(declared, list) else []:
                number = port.get("containerPort") if isinstance(port, Table) else None
                if isinstance(number, int):
                    found[number] = str(item.get("name", ""))
        return found

    def asks_gunicorn(self, action: Action) -> bool:
        """Whether gunicorn or the plugin answers a probe, rather than another container."""
        if action.port is None or action.port == self.probe_port:
            return True
        return action.port in self.ports if self.ports else action.port not in self.others_ports

    @property
    def probe_port(self) -> int | None:
        """The port of ``grace_probe_bind``; None if there is none."""
        bind = self.seen.settings.probe_bind
        if not bind or bind.startswith("unix:"):
            return None
        return int(bind.rpartition(":")[2])


def is_cloud_run(document: Table) -> bool:
    """Whether an object, or its template, has an annotation or a label of Cloud Run's."""
    spec = document.get("spec")
    template = spec.get("template") if isinstance(spec, Table) else None
    for item in (document, template):
        metadata = item.get("metadata") if isinstance(item, Table) else None
        for key in ("annotations", "labels"):
            found = metadata.get(key) if isinstance(metadata, Table) else None
            if isinstance(found, Table) and any(
                str(name).startswith(("run.googleapis.com/", "cloud.googleapis.com/"))
                for name in found
            ):
                return True
    return False
