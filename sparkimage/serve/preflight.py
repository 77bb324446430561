"""What must hold on all nodes before a server is started."""

from __future__ import annotations

import shlex
from collections.abc import Sequence

from sparkimage.core.errors import ImageMissingError, LaunchError, MixedFleetError
from sparkimage.core.program import program
from sparkimage.core.progress import View
from sparkimage.image.store import Image
from sparkimage.nodes.session import NodeSession
from sparkimage.serve.doctor import doctor
from sparkimage.serve.doctor.checks import FAIL, WARN, ClusterReport

KNOWN = "combinations"
"""The doctor's check whose warnings are shown."""


def require_image(all_: Sequence[NodeSession], image: Image, name: str, variant: str) -> None:
    """Every node has this very image. Raises ``ImageMissingError``, ``MixedFleetError``."""
    lacking = [session for session in all_ if session.has(image) is None]
    if lacking:
        kind = ImageMissingError if len(lacking) == len(all_) else MixedFleetError
        raise kind(
            f"{image.digest[:19]} ({variant}) is not on "
            f"{len(lacking)} of {len(all_)} nodes; nothing was started",
            detail="\n".join(
                f"✗ {session.name} has another image as {name}"
                if session.now.id_of(name)
                else f"✗ {session.name} does not have it"
                for session in lacking
            ),
            hint=f"distribute it: {program()} distribute {variant}",
        )


def require(cluster: ClusterReport, checks: Sequence[str], view: View) -> None:
    """These checks of the doctor pass on all nodes. Raises ``LaunchError`` with everything that
    fails."""
    findings = doctor.examine(cluster, [doctor.CHECKS[id] for id in checks]).findings
    for finding in findings:
        if finding.check == KNOWN and finding.severity is WARN:
            nodes = ", ".join(finding.nodes)
            view.say(f"warning: {nodes}: {finding.what}\n  → {finding.fix}")
    failed = [finding for finding in findings if finding.severity is FAIL]
    names = {name for finding in failed for name in finding.nodes}
    if failed:
        raise LaunchError(
            f"{len(names)} of {len(cluster.nodes)} nodes cannot run it; nothing was started",
            detail="\n".join(
                f"✗ {', '.join(finding.nodes)}: {finding.what} ({finding.check})\n"
                f"    → {finding.fix}"
                for finding in failed
            ),
            hint=f"see all checks: {program()} doctor --model " + shlex.quote(cluster.model),
        )
