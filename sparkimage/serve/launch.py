"""Starts one image on the nodes of a fleet as one server, or on none of them.

Look, decide, create, start, wait, prove. The head starts first: the workers of vLLM's multi-node
mode retry its master port until it answers, while a head without workers only waits
(https://docs.vllm.ai/en/latest/serving/parallelism_scaling/). What a launch has started it stops
again when it fails or is interrupted, unless it is told to keep it.
"""

from __future__ import annotations

import posixpath
import time
from collections import ChainMap
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from sparkimage.core.errors import LaunchError, SparkError
from sparkimage.core.program import program
from sparkimage.core.progress import View
from sparkimage.core.units import plural
from sparkimage.image.store import Image
from sparkimage.nodes import fabric, reachability
from sparkimage.nodes.concurrent import run_on_all
from sparkimage.nodes.connection import Connection
from sparkimage.nodes.retag import failure
from sparkimage.nodes.session import NodeReport, NodeSession
from sparkimage.nodes.ssh import CONTAINERS, IMAGES, MACHINE
from sparkimage.nodes.topology import Topology, topology
from sparkimage.serve import command, deployments, memory, nccl, preflight, secrets
from sparkimage.serve.command import Container, Host, Request
from sparkimage.serve.deployments import HEAD, Deployment
from sparkimage.serve.doctor import doctor
from sparkimage.serve.doctor.checks import ClusterReport
from sparkimage.serve.followers import Rank

if TYPE_CHECKING:
    from sparkimage.config.plan import Plan
    from sparkimage.nodes.model_fleet import Comparison
    from sparkimage.serve.caches import Caches
    from sparkimage.serve.waiting import Ready

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
    plan: Plan
    """What the image was built from."""
    nccl_conf: dict[str, dict[str, str]]
    """The settings in the image's files, which NCCL reads where no variable is set, by file."""
    remotes: Sequence[Connection]
    """The nodes by rank, not connected, or begun; the caller closes their connections."""
    view: View
    secrets: Mapping[str, str] = field(default_factory=dict, repr=False)
    """The values of the profile's secrets, by name."""
    pushed: Comparison | None = None
    """The model as it was pushed to the nodes, where it was."""
    timeout_s: float = 1800.0
    """Seconds until it must be ready."""
    warm_up_s: float = 0.0
    """Seconds that the warm-up may take; 0: none."""
    caches: Caches | None = None
    """Saved caches to bring, and whether to save what was compiled."""
    keep: bool = False
    """Leave what was started when it fails."""
    replace: bool = False
    """Remove a deployment of this name that runs."""
    _created: dict[str, str] = field(default_factory=dict)
    """Ids of the containers that this launch created, by node."""
    _is_started: bool = False
    """At least one of them may have been started."""

    def dry_run(self) -> tuple[Container, ...]:
        """What it would start, as the nodes are now; changes nothing.

        Raises ``NodeError`` and its kin, ``LaunchError``, ``MixedFleetError``.
        """
        return self._plan([NodeSession(remote=remote) for remote in self.remotes])

    def run(self) -> Ready:
        """Start it, and wait until it serves and is proven. Raises ``LaunchError``, ``NodeError``
        and their kin; then nothing that was started is left, unless ``keep``."""
        # An HTTP client and the known failures take long to import, which a dry run saves.
        from sparkimage.serve import waiting

        began = time.monotonic()
        all_ = [NodeSession(remote=remote) for remote in self.remotes]
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
        memory.require(snapshots, self.request.profile, self._vllm, self.view)
        if self.caches is not None:
            self.caches.bring_if_saved(all_)
        with self._all_or_none(all_):
            ranks = self._create(all_, containers)
            self._start(ranks)
            ready = waiting.until_ready(
                self.request.spec(self._hosts(all_)[HEAD].address), ranks, began=began,
                timeout_s=self.timeout_s, warm_up_s=self.warm_up_s, view=self.view,
                key=self.secrets.get(secrets.API_KEY, ""),
            )  # fmt: skip
        if self.caches is not None:
            self.caches.save_from(all_, unfinished=bool(ready.warm_up.unfinished))
        return ready

    # Look and decide

    @property
    def _vllm(self) -> str:
        """The image's version of vLLM, where it is expected to have one."""
        return self.plan.expect.version or ""

    def _plan(self, all_: Sequence[NodeSession]) -> tuple[Container, ...]:
        with self.view.busy("looking at the nodes"):
            errors = run_on_all(all_, self._look, stop=NodeSession.abandon)
        if errors:
            raise failure(errors, len(all_), "did not answer; nothing was started")
        preflight.require_image(all_, self.image, self.plan.image, self.request.variant)
        self._require(all_, ["interface"])
        if shares := memory.shares([one.now for one in all_], self.request.profile, self._vllm):
            self.view.say(shares)
        return command.containers(self.request, self._hosts(all_))

    def _look(self, session: NodeSession) -> None:
        session.open(IMAGES, CONTAINERS, MACHINE, model=self.request.model)
        if self.pushed is not None:
            self.pushed.look(session)

    def _look_again(self, session: NodeSession) -> None:
        session.seen = session.look(IMAGES, CONTAINERS, MACHINE, model=self.request.model)

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
        request, profile = self.request, self.request.profile
        image_env = {**ChainMap(self.image.settings.env, *self.nccl_conf.values())}
        cluster = ClusterReport(
            nodes=tuple(NodeReport(node=one.remote.node, snapshot=one.now) for one in all_),
            model=request.model, port=profile.port, master_port=profile.master_port,
            rdma=request.rdma, gpus=profile.gpus, cuda=self.plan.expect.cuda or "",
            nccl=request.nccl.version if request.nccl else "",
            image_env=image_env, env=profile.env,
            pushed=self.pushed.differences if self.pushed is not None else None,
        )  # fmt: skip
        preflight.require(cluster, checks, self.view)

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
        grace_s = deployments.GRACE_S if existing.lives else 0
        what = f"removing {existing.name} from {plural(len(existing.members), 'node')}"
        with deployments.removal(existing.name), self.view.busy(what):
            errors = deployments.remove_all(all_, existing.members, grace_s=grace_s)
        if errors:
            raise failure(
                errors, len(all_), "could not remove it; nothing was started"
            )  # fmt: skip
        # Its ports and its memory are free now.
        with self.view.busy("looking at the nodes again"):
            errors = run_on_all(all_, self._look_again)
        if errors:
            raise failure(errors, len(all_), "did not answer; nothing was started")
        self._require(all_, ["ports"])

    # Start

    def _create(self, all_: Sequence[NodeSession], containers: Sequence[Container]) -> list[Rank]:
        """The ranks, whose containers were created and load the same NCCL."""
        by_node = {container.node: container for container in containers}

        def create(session: NodeSession) -> None:
            container = by_node[session.name]
            self._write_files(session, container)
            argv = container.create_argv
            done = self._docker(session, container.rank, argv, container.secrets)
            self._created[session.name] = done.split()[-1]

        with self.view.busy("creating the containers"):
            errors = run_on_all(all_, create)
            if errors:
                raise failure(
                    errors, len(all_), "could not create its container", LaunchError
                )  # fmt: skip
            nccl.require(
                [(session, self._created[session.name]) for session in all_],
                self.request.libraries,
                self.request.nccl,
            )
        return [
            Rank(rank=rank, session=session, container=self._created[session.name])
            for rank, session in enumerate(all_)
        ]

    def _write_files(self, session: NodeSession, container: Container) -> None:
        """Make the folders for caches, and write the chat template."""
        template = container.chat_template
        folders = [*container.caches, *([posixpath.dirname(template)] if template else [])]
        if folders:
            session.remote.run(["mkdir", "-p", "--", *folders])
        if template:
            words = ["sh", "-c", WRITE, "write", template]
            session.remote.run(words, stdin=self.request.chat_template)

    def _start(self, ranks: Sequence[Rank]) -> None:
        def start(rank: Rank) -> None:
            docker = rank.session.remote.docker.split()
            self._docker(rank.session, rank.rank, [*docker, "start", rank.container])

        self._is_started = True
        self.view.say(f"starting the head on {ranks[HEAD].name}")
        errors = run_on_all(ranks[:1], start)
        if not errors and len(ranks) > 1:
            self.view.say(f"starting {len(ranks) - 1} workers")
            errors = run_on_all(ranks[1:], start)
        if errors:
            raise failure(errors, len(ranks), "could not start it", LaunchError)

    def _docker(
        self, session: NodeSession, rank: int, argv: Sequence[str], given: Sequence[str] = ()
    ) -> str:
        """The output of a command of docker that creates or starts a rank's container; its input
        is a file with the ``given`` secrets."""
        words, stdin = argv, None
        if given:
            words = ["sh", "-c", secrets.PIPED, "create", *argv]
            stdin = secrets.env_file(self.secrets, given)
        done = session.remote.run(words, check=False, timeout_s=START_S, stdin=stdin)
        if done.returncode == 0:
            return done.stdout
        from sparkimage.serve.explain import knowledge

        stderr = done.stderr.strip()
        matches = [match for match in knowledge.read(stderr.splitlines()) if match.known]
        known = [line for match in matches for line in match.as_lines()]
        command = argv[len(session.remote.docker.split())]
        raise LaunchError(
            f"{session.name} (rank {rank}): docker {command} failed",
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
            from sparkimage.serve import waiting

            if isinstance(error, SparkError):
                secrets.hide(self.secrets, error)
            if self.keep and self._is_started:
                note = f"what was started keeps running; {program()} stop ends it"
            elif left := self._undo(all_):
                note = f"containers may still run on {', '.join(left)}: {program()} stop"
            else:
                done = "what was started has been stopped"
                note = done if self._is_started else "nothing was started"
            waiting.add_note(error, note)
            raise

    def _undo(self, all_: Sequence[NodeSession]) -> list[str]:
        """Remove what this launch created; the nodes where that failed."""
        concerned = [session for session in all_ if session.name in self._created]
        if concerned and self._is_started:
            names = ", ".join(session.name for session in concerned)
            self.view.say(f"stopping what was started on {names}")
        return sorted(
            run_on_all(
                concerned,
                lambda session: deployments.remove(
                    session, [self._created[session.name]], grace_s=QUICK_S
                ),
            )
        )
