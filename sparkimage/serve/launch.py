"""Starts one image on the nodes of a fleet as one server, or on none of them.

Look, decide, start, wait, prove. The head starts first: the workers of vLLM's multi-node mode
retry its master port until it answers, while a head without workers only waits
(https://docs.vllm.ai/en/latest/serving/parallelism_scaling/). What a launch has started it stops
again when it fails or is interrupted, unless it is told to keep it.
"""

from __future__ import annotations

import posixpath
import shlex
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field

from sparkimage.config.inventory import Fleet
from sparkimage.core.errors import ImageMissingError, LaunchError, MixedFleetError
from sparkimage.core.program import program
from sparkimage.core.progress import View
from sparkimage.image.store import Image
from sparkimage.nodes import fabric, reachability
from sparkimage.nodes.concurrent import run_on_all
from sparkimage.nodes.model_fleet import Comparison
from sparkimage.nodes.retag import lines
from sparkimage.nodes.session import NodeReport, NodeSession, sessions
from sparkimage.nodes.ssh import CONTAINERS, IMAGES, MACHINE
from sparkimage.nodes.topology import Topology, topology
from sparkimage.serve import command, deployments, memory, waiting
from sparkimage.serve.command import Container, Host, Request
from sparkimage.serve.deployments import HEAD, Deployment
from sparkimage.serve.doctor import doctor
from sparkimage.serve.doctor.checks import FAIL, WARN, ClusterReport
from sparkimage.serve.explain import knowledge
from sparkimage.serve.followers import Rank
from sparkimage.serve.waiting import Ready

KNOWN = "combinations"
"""The doctor's check whose warnings are shown."""
START_S = 120.0
"""Seconds that Docker may take to start one container."""
WRITE = 'cat >"$1.new" && mv -f -- "$1.new" "$1"'
"""Writes its input to a file, which is never there in part."""
QUICK_S = 5
"""Seconds between SIGTERM and SIGKILL for a server that never was ready."""


@dataclass(kw_only=True)
class Launch:
    """The launch of one image."""

    request: Request
    image: Image
    image_name: str
    fleet: Fleet
    """The nodes by rank."""
    view: View
    vllm: str = ""
    """The image's version of vLLM, where it is expected to have one."""
    cuda: str = ""
    """The CUDA that the image's torch is built for, where it is expected to have one."""
    pushed: Comparison = field(default_factory=lambda: Comparison(model=None))
    """The model as it was pushed to the nodes, where it was."""
    timeout_s: float = 1800.0
    """Seconds until it must be ready."""
    warm_up_s: float = 0.0
    """Seconds that the warm-up may take; 0: none."""
    keep: bool = False
    """Leave what was started when it fails."""
    replace: bool = False
    """Remove a deployment of this name that runs."""
    patience_s: float = 60.0
    _started: dict[str, list[str]] = field(default_factory=dict)
    """Ids of the containers that this launch created, by node."""

    def plan(self) -> tuple[Container, ...]:
        """What it would start, as the nodes are now; changes nothing.

        Raises ``NodeError`` and its kin, ``LaunchError``, ``MixedFleetError``.
        """
        with sessions(self.fleet, self.patience_s) as all_:
            return self._plan(all_)

    def run(self) -> Ready:
        """Start it, and wait until it serves and is proven. Raises ``LaunchError``, ``NodeError``
        and their kin; then nothing that was started is left, unless ``keep``."""
        began = time.monotonic()
        with sessions(self.fleet, self.patience_s) as all_:
            containers = self._plan(all_)
            existing = self._existing(all_)
            # The ports of an existing deployment are free once it is removed.
            with self.view.busy("connecting the nodes to each other"):
                ports = self.request.profile.port, self.request.profile.master_port
                reachability.probe(all_, all_[HEAD].name, ports)
            must_hold = [id for id in doctor.PREFLIGHT if id != "ports" or existing is None]
            self._require(all_, must_hold)
            if existing is not None:
                self._remove(all_, existing)
            snapshots = [session.now for session in all_]
            memory.require(snapshots, self.request.profile, self.vllm, self.view)
            with self._all_or_none(all_):
                self._start(all_, containers)
                ranks = [
                    Rank(rank=rank, session=session, container=self._started[session.name][0])
                    for rank, session in enumerate(all_)
                ]
                return waiting.until_ready(
                    self.request.spec(self._hosts(all_)[HEAD].address), ranks, began=began,
                    timeout_s=self.timeout_s, warm_up_s=self.warm_up_s, view=self.view,
                )  # fmt: skip

    # Look and decide

    def _plan(self, all_: Sequence[NodeSession]) -> tuple[Container, ...]:
        with self.view.busy("looking at the nodes"):
            errors = run_on_all(all_, self._look, stop=NodeSession.abandon)
        if errors:
            raise deployments.failure(errors, len(all_), "did not answer; nothing was started")
        self._require_image(all_)
        self._require(all_, ["interface"])
        return command.containers(self.request, self._hosts(all_))

    def _look(self, session: NodeSession) -> None:
        session.open(IMAGES, CONTAINERS, MACHINE, model=self.request.model)
        self.pushed.look(session)

    def _look_again(self, session: NodeSession) -> None:
        session.seen = session.look(IMAGES, CONTAINERS, MACHINE, model=self.request.model)

    def _require_image(self, all_: Sequence[NodeSession]) -> None:
        """Every node has this very image. Raises ``ImageMissingError``, ``MixedFleetError``."""
        hint = f"distribute it: {program()} distribute {self.request.variant}"
        images = {session.name: session.has(self.image) for session in all_}
        lacking = [session for session in all_ if images[session.name] is None]
        if lacking:
            kind = ImageMissingError if len(lacking) == len(all_) else MixedFleetError
            raise kind(
                f"{self.request.digest[:19]} ({self.request.variant}) is not on "
                f"{len(lacking)} of {len(all_)} nodes; nothing was started",
                detail="\n".join(
                    f"✗ {session.name} has another image as {self.image_name}"
                    if session.now.by_tag(self.image_name)
                    else f"✗ {session.name} does not have it"
                    for session in lacking
                ),
                hint=hint,
            )
        if len({image.identity for image in images.values() if image is not None}) > 1:
            raise MixedFleetError(
                "the nodes' images differ in platform, config or layers; nothing was started",
                hint=hint,
            )

    def _hosts(self, all_: Sequence[NodeSession]) -> list[Host]:
        network = topology([session.now for session in all_])
        return [self._host(session, network) for session in all_]

    def _host(self, session: NodeSession, network: Topology) -> Host:
        now, link, image = session.now, fabric.data_link(session.now), session.has(self.image)
        assert image is not None
        return Host(
            node=session.name,
            docker=tuple(session.remote.docker.split()),
            address=link.address or session.remote.node.control,
            interface=link.interface.name,
            hcas=network.hcas(now),
            fabric=network.env(now) if self.request.rdma else {},
            env=now.node.env,
            image=image.id,
            caches=now.caches,
            gpus=now.gpu_options,
        )

    def _require(self, all_: Sequence[NodeSession], checks: Sequence[str]) -> None:
        """These checks of the doctor pass on all nodes. Raises ``LaunchError`` with everything
        that fails."""
        request, profile = self.request, self.request.profile
        cluster = ClusterReport(
            nodes=tuple(NodeReport(node=one.remote.node, snapshot=one.now) for one in all_),
            model=request.model, port=profile.port, master_port=profile.master_port,
            rdma=request.rdma, gpus=profile.gpus, nccl=request.nccl, cuda=self.cuda,
            env=profile.env, pushed=self.pushed.differences,
        )  # fmt: skip
        findings = doctor.examine(cluster, [doctor.CHECKS[id] for id in checks]).findings
        for finding in findings:
            if finding.check == KNOWN and finding.severity is WARN:
                nodes = ", ".join(finding.nodes)
                self.view.say(f"warning: {nodes}: {finding.what}\n  → {finding.fix}")
        failed = [finding for finding in findings if finding.severity is FAIL]
        names = {name for finding in failed for name in finding.nodes}
        if failed:
            raise LaunchError(
                f"{len(names)} of {len(all_)} nodes cannot run it; nothing was started",
                detail="\n".join(
                    f"✗ {', '.join(finding.nodes)}: {finding.what} ({finding.check})\n"
                    f"    → {finding.fix}"
                    for finding in failed
                ),
                hint=f"see all checks: {program()} doctor --model " + shlex.quote(request.model),
            )

    def _existing(self, all_: Sequence[NodeSession]) -> Deployment | None:
        """The deployment of this name. Raises ``LaunchError`` where it runs and must stay."""
        members = (member for session in all_ for member in deployments.members(session.now))
        found = {deployment.name: deployment for deployment in deployments.judge(members)}
        existing = found.get(self.request.name)
        if existing is not None and existing.lives and not self.replace:
            nodes = ", ".join(member.node for member in existing.members if member.lives)
            what = "runs already" if not existing.problems else "exists, and is broken"
            raise LaunchError(
                f"{existing.name} {what} (on {nodes}); nothing was started",
                detail="\n".join(existing.problems),
                hint=f"replace it: --replace; stop it: {program()} stop; or another --name",
            )
        return existing

    def _remove(self, all_: Sequence[NodeSession], existing: Deployment) -> None:
        """Remove a deployment, or what is left of it; then its ports must be free."""
        self.view.say(f"removing {existing.name} from {len(existing.members)} nodes")
        grace_s = deployments.GRACE_S if existing.lives else 0
        errors = deployments.remove_all(all_, existing.members, grace_s=grace_s)
        if errors:
            raise deployments.failure(
                errors, len(all_), "could not remove it; nothing was started"
            )  # fmt: skip
        # Its ports and its memory are free now.
        with self.view.busy("looking at the nodes again"):
            errors = run_on_all(all_, self._look_again)
        if errors:
            raise deployments.failure(errors, len(all_), "did not answer; nothing was started")
        self._require(all_, ["ports"])

    # Start

    def _start(self, all_: Sequence[NodeSession], containers: Sequence[Container]) -> None:
        by_node = {container.node: container for container in containers}

        def make_caches(session: NodeSession) -> None:
            caches, template = by_node[session.name].caches, by_node[session.name].chat_template
            folders = [*caches, *([posixpath.dirname(template)] if template else [])]
            if folders:
                session.remote.run(["mkdir", "-p", "--", *folders])
            if template:
                words = ["sh", "-c", WRITE, "write", template]
                session.remote.run(words, stdin=self.request.chat_template)

        def start(session: NodeSession) -> None:
            self._docker_run(session, by_node[session.name])

        errors = run_on_all(all_, make_caches)
        if errors:
            raise deployments.failure(errors, len(all_), "could not create the folders")
        self.view.say(f"starting the head on {all_[HEAD].name}")
        errors = run_on_all(all_[:1], start)
        if not errors and len(all_) > 1:
            self.view.say(f"starting {len(all_) - 1} workers")
            errors = run_on_all(all_[1:], start)
        if errors:
            raise LaunchError(
                f"{len(errors)} of {len(all_)} nodes could not start it",
                detail="\n".join(lines(errors)),
            )

    def _docker_run(self, session: NodeSession, container: Container) -> None:
        started = session.remote.run(container.argv, check=False, timeout_s=START_S)
        ids = self._started.setdefault(session.name, [])
        if started.returncode == 0:
            ids.append(started.stdout.split()[-1])
            return
        # `docker run` leaves a container that it could not start.
        ids += [
            member.id
            for member in deployments.members(session.look(CONTAINERS))
            if member.name == container.name and member.state == "created"
        ]
        stderr = started.stderr.strip()
        matches = [match for match in knowledge.read(stderr.splitlines()) if match.known]
        known = [line for match in matches for line in match.as_lines()]
        raise LaunchError(
            f"{session.name} (rank {container.rank}): docker run failed",
            detail="\n".join([stderr, *known]),
            hint=matches[0].fix if matches else f"look there: {session.remote.ssh}",
        )

    @contextmanager
    def _all_or_none(self, all_: Sequence[NodeSession]) -> Iterator[None]:
        """Undo what the block has started where it fails."""
        try:
            yield
        except BaseException as error:
            # Cleaned up and raised again.
            if self.keep:
                note = f"what was started keeps running; {program()} stop ends it"
            elif left := self._undo(all_):
                note = f"containers may still run on {', '.join(left)}: {program()} stop"
            else:
                note = "what was started has been stopped"
            waiting.add_note(error, note)
            raise

    def _undo(self, all_: Sequence[NodeSession]) -> list[str]:
        """Remove what this launch started; the nodes where that failed."""
        concerned = [session for session in all_ if self._started.get(session.name)]
        if concerned:
            names = ", ".join(session.name for session in concerned)
            self.view.say(f"stopping what was started on {names}")
        return sorted(
            run_on_all(
                concerned,
                lambda session: deployments.remove(
                    session, self._started[session.name], grace_s=QUICK_S
                ),
            )
        )
