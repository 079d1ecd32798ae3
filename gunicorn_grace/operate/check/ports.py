"""Rules about the ports that probes ask, and about what answers there."""

from __future__ import annotations

from collections.abc import Iterator

from .budget import env
from .case import Case
from .findings import Hit, Patch, Severity, rule
from .probing import probes_of, right_port

LOOPBACK = ("127.", "localhost:", "[::1]:")


@rule(
    "probe-port",
    Severity.ERROR,
    "A probe or a hook asks a port at which nobody answers.",
    "The pod never gets ready, or is restarted again and again; a hook at such a port does "
    "nothing.",
    "Name a port of the container, the one that gunicorn binds, or that of `grace_probe_bind`. A "
    "probe comes from the node, so gunicorn has to listen on the pod's address and not on "
    "loopback.",
)
def probe_port(case: Case) -> Iterator[Hit]:
    """Check the ports of the probes and of the hook."""
    actions = [(f"{name} probe", probe.action) for name, probe in probes_of(case)]
    if case.hook is not None:
        actions.append(("preStop hook", case.hook))
    elsewhere = {*case.others_ports}
    right = right_port(case)
    for name, action in actions:
        key = name.partition(" ")[0]
        patch = None
        if right is not None and action.kind in ("httpGet", "tcpSocket"):
            change = {action.kind: {"port": right}}
            patch = Patch(
                container={"lifecycle": {"preStop": change}}
                if key == "preStop"
                else {f"{key}Probe": change}
            )
        if action.port is None and action.port_name:
            known = ", ".join(n for n in case.container.ports if not n.isdecimal()) or "none"
            yield Hit(
                case.line("port", of=action.table),
                f"{name}: port {action.port_name} is not a port of container "
                f"{case.container.name} (named: {known})",
                f"ask {right}" if right is not None else "name a port of this container",
                patch,
            )
            continue
        ours = case.ports
        bind = case.seen.settings.probe_bind or ""
        is_probe_port = action.port is not None and action.port == case.probe_port
        if is_probe_port and bind.startswith(LOOPBACK) and not action.host:
            yield Hit(
                case.line("port", of=action.table),
                f"{name}: the probe port listens on {bind}, where the kubelet cannot reach it",
                f'set GRACE_PROBE_BIND to "0.0.0.0:{action.port}"',
                Patch(container=env(GRACE_PROBE_BIND=f"0.0.0.0:{action.port}")),
            )
        if action.port is None or ours is None or case.seen.unseen & {"probe_bind"}:
            continue
        line = case.line("port", of=action.table)
        if action.port in ours and not action.host:
            binds = [b for b in case.seen.binds or () if b.endswith(f":{action.port}")]
            if binds and all(bind.startswith(LOOPBACK) for bind in binds):
                yield Hit(
                    line,
                    f"{name}: gunicorn listens on {binds[0]}, where the kubelet cannot reach it",
                    f"bind 0.0.0.0:{action.port}, or set GRACE_PROBE_BIND to a port of the pod",
                )
        elif ours and action.port not in ours | elsewhere and action.port != case.probe_port:
            certain = action.port not in case.container.ports.values() and case.seen.is_certain(
                "probe_bind"
            )
            listed = ", ".join(map(str, sorted(ours)))
            yield Hit(
                line,
                f"{name} asks port {action.port}, and gunicorn listens on {listed}",
                f"ask {right}" if right is not None else f"ask {listed}",
                patch,
                Severity.ERROR if certain else Severity.WARNING,
            )


@rule(
    "busy-worker",
    Severity.WARNING,
    "One sync worker answers the probes too, and they wait for a second.",
    "A request of more than a second makes the pod not ready, or gets it restarted in the middle "
    "of that request.",
    "Set `GRACE_PROBE_BIND` and ask that port, or use `gthread` with threads; raise "
    "`timeoutSeconds`.",
)
def busy_worker(case: Case) -> Iterator[Hit]:
    """Find a single sync worker that also has to answer a probe within a second."""
    seen = case.seen
    if seen.elsewhere or case.launch is None or seen.unseen & {"probe_bind"}:
        return
    if seen.whole("workers", 1) != 1 or seen.whole("threads", 1) != 1:
        return
    if seen.gunicorn.get("worker_class", "sync") not in (
        "sync",
        "gunicorn.workers.sync.SyncWorker",
    ):
        return
    for name, probe in probes_of(case, "liveness", "readiness"):
        port = probe.action.port
        if probe.action.kind != "httpGet" or probe.timeout > 1 or port == case.probe_port:
            continue
        if case.ports is not None and port not in case.ports:
            continue
        yield Hit(
            case.line("timeoutSeconds", of=probe.table)
            if "timeoutSeconds" in probe.table
            else probe.line,
            f"{name} waits timeoutSeconds {probe.timeout} for the only worker, which serves one "
            "request at a time",
            "set GRACE_PROBE_BIND and ask that port, or raise timeoutSeconds",
            Patch(container={f"{name}Probe": {"timeoutSeconds": 5}}),
        )


@rule(
    "probe-port-clash",
    Severity.ERROR,
    "The probe port is taken.",
    "gunicorn does not boot, or boots without its probe port, so the pod never gets ready.",
    "Give `GRACE_PROBE_BIND` a port that nobody else has in the pod. With `hostNetwork`, declare "
    "it "
    "among the container's `ports`, so that two pods never share a node.",
)
def probe_port_clash(case: Case) -> Iterator[Hit]:
    """Compare the probe port with the other ports of the pod and of the node."""
    port = case.probe_port
    if port is None:
        return
    source, line = case.seen.lines.get("probe_bind", ("", 0))
    line = line if source == case.workload.source else case.container.line
    others = case.others_ports
    if case.ports and port in case.ports:
        yield Hit(line, f"grace_probe_bind has port {port}, which gunicorn binds", "give another")
    elif port in others:
        yield Hit(
            line,
            f"grace_probe_bind has port {port}, which container {others[port]} has",
            "give another",
        )
    elif case.workload.pod.get("hostNetwork") is True and port not in case.container.ports.values():
        yield Hit(
            case.line("hostNetwork", of=case.workload.pod),
            f"hostNetwork, and the probe port {port} is not among the container's ports: two pods "
            "on one node clash",
            f"add {{containerPort: {port}}} to its ports",
            Patch(container={"ports": [{"containerPort": port, "name": "probes"}]}),
            Severity.WARNING,
        )
