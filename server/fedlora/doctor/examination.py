"""All that is looked at for what a machine is meant for, in its order."""

from functools import partial
from pathlib import Path

from fedlora.common.addresses import split_address
from fedlora.common.errors import ConfigError
from fedlora.doctor import accelerator, identity, machine, model, network, packages
from fedlora.doctor.finding import Check, Finding, findings_of, problem
from fedlora.doctor.subject import Subject, subject_of
from fedlora.server.disk.status_file import is_served


def examined(path: Path | None, *, server: str | None, listen: str) -> list[Finding]:
    """Return what is found.

    Args:
        path: the site file, run file or run folder that the machine is meant for; None for any run.
        server: the way to it is tried too, HOST:PORT.
        listen: where a server would listen here, HOST:PORT.

    Raises:
        ConfigError: an address is none.
    """
    split_address(listen, listens=True)
    if server is not None:
        split_address(server)
    findings: list[Finding] = []
    subject = Subject()
    try:
        subject = subject_of(path)
    except ConfigError as error:
        remedy = f"fedlora simulate --print-config > {path}.new, to compare with"
        findings += [problem("file", line, remedy) for line in str(error).splitlines()]
    return findings + findings_of(_checks(subject, server=server, listen=listen))


def _checks(subject: Subject, *, server: str | None, listen: str) -> dict[str, Check]:
    checks: dict[str, Check] = {
        "python": packages.python,
        "packages": packages.packages,
        "gpu": partial(accelerator.torch_and_gpus, subject),
        "bfloat16": accelerator.half_precision,
        "bitsandbytes": partial(accelerator.bitsandbytes, subject),
        "memory": machine.memory,
        "folders": partial(machine.folders, subject),
        "environment": machine.environment,
        "hub": partial(model.hub, subject),
        "base model": partial(model.base_model, subject),
        "fingerprint": partial(model.fingerprint, subject),
        "data": partial(model.data, subject),
        "site's certificate": partial(identity.site_certificate, subject),
        "server's certificates": partial(identity.server_certificates, subject),
    }
    # The port of a run that is being served is rightly taken.
    if subject.site is None and not (subject.folder is not None and is_served(subject.folder)):
        checks["port"] = partial(network.listening, listen)
    if server is not None:
        checks["server"] = partial(network.reach, server, subject)
    return checks
