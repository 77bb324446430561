"""Starts one image on the nodes of a fleet as one server, or on none of them.

Look, decide, start, wait, prove. The head goes first: the workers of vLLM's multi-node mode call
its master port, and try again until it answers, while nothing answers for a head that is not
there (https://docs.vllm.ai/en/latest/serving/parallelism_scaling/). What a launch has started it
stops again when it fails or is interrupted, unless it is told to keep it.
"""

from __future__ import annotations

import shlex
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field

from sparkimage.config.inventory import Fleet
from sparkimage.core.errors import ImageMissingError, LaunchError, MixedFleetError
from sparkimage.core.progress import View
from sparkimage.image.store import Image
from sparkimage.nodes import fabric
from sparkimage.nodes.concurrent import run_on_all
from sparkimage.nodes.retag import lines
from sparkimage.nodes.session import NodeReport, NodeSession, sessions
from sparkimage.nodes.ssh import CONTAINERS, IMAGES, MACHINE
from sparkimage.serve import command, sets, waiting
from sparkimage.serve.command import Container, Place, Request
from sparkimage.serve.doctor import doctor
from sparkimage.serve.doctor import rules_machine as machine
from sparkimage.serve.doctor import rules_model as model
from sparkimage.serve.doctor import rules_network as network
from sparkimage.serve.doctor.checks import FAIL, Check, ClusterReport
from sparkimage.serve.explain import knowledge
from sparkimage.serve.sets import HEAD, Deployment
from sparkimage.serve.waiting import Rank, Ready, ServerSpec

PORTS = machine.ports
PREFLIGHT: tuple[Check, ...] = (
    machine.gpu, machine.gpus_flag, network.verbs,
    network.interface, model.folder, model.shards, PORTS,
)  # fmt: skip
"""What the doctor finds must hold before anything is started."""
START_S = 120.0
"""Seconds that Docker may take to start one container."""
QUICK_S = 5
"""Seconds that a server which never was ready has to end by itself."""


@dataclass(frozen=True, kw_only=True)
class Options:
    """How to go about it."""

    timeout_s: float = 1800.0
    keep: bool = False
    """What was started stays when it fails."""
    replace: bool = False
    """A set of this name that runs gives way."""
    patience_s: float = 60.0


@dataclass(kw_only=True)
class Launch:
    """One image on its way to serve."""

    request: Request
    image: Image
    image_name: str
    fleet: Fleet
    """The nodes by rank."""
    view: View
    options: Options = field(default_factory=Options)
    _started: dict[str, list[str]] = field(default_factory=dict)
    """Ids of the containers that this launch made, by node."""

    def plan(self) -> tuple[Container, ...]:
        """What would be started, decided from what the nodes are; nothing is changed.

        Raises ``NodeError`` and its kin, ``LaunchError``, ``MixedFleetError``.
        """
        with sessions(self.fleet, self.options.patience_s) as all_:
            return self._plan(all_)

    def run(self) -> Ready:
        """Start it, and wait until it serves and is proven. Raises ``LaunchError``, ``NodeError``
        and their kin; then nothing that was started is left, unless ``keep``."""
        began = time.monotonic()
        with sessions(self.fleet, self.options.patience_s) as all_:
            planned = self._plan(all_)
            there = self._there(all_)
            # What a set of this name uses now is free when it has given way.
            self._require(all_, [one for one in PREFLIGHT if there is None or one is not PORTS])
            self._make_room(all_, there)
            with self._all_or_none(all_):
                self._start(all_, planned)
                ranks = [
                    Rank(rank=rank, session=one, container=self._started[one.name][0])
                    for rank, one in enumerate(all_)
                ]
                return waiting.until_ready(
                    self._spec(all_[HEAD]), ranks, began=began, timeout_s=self.options.timeout_s,
                    view=self.view,
                )  # fmt: skip

    def _spec(self, head: NodeSession) -> ServerSpec:
        request, profile = self.request, self.request.profile
        return ServerSpec(
            name=request.name, variant=request.variant, profile=request.profile_name,
            digest=request.digest, head=self._place(head).address, port=profile.port,
            nccl=request.nccl, rdma=request.rdma, gpus=profile.gpus,
        )  # fmt: skip

    # Look and decide

    def _plan(self, all_: Sequence[NodeSession]) -> tuple[Container, ...]:
        with self.view.busy("looking at the nodes"):
            errors = run_on_all(all_, self._look, stop=NodeSession.abandon)
        if errors:
            raise sets.failure(errors, len(all_), "cannot be asked; nothing was started")
        self._equal(all_)
        self._require(all_, [network.interface])
        return command.containers(self.request, [self._place(session) for session in all_])

    def _look(self, session: NodeSession) -> None:
        session.open(IMAGES, CONTAINERS, MACHINE, model=self.request.model)

    def _equal(self, all_: Sequence[NodeSession]) -> None:
        """Every node has the image itself: asked of it, not assumed."""
        lacking = {}
        for session in all_:
            if session.has(self.image) is not None:
                continue
            other = session.now.by_tag(self.image_name)
            what = f"has another image as {self.image_name}" if other else "does not have it"
            lacking[session.name] = f"✗ {session.name} {what}"
        if lacking:
            kind = ImageMissingError if len(lacking) == len(all_) else MixedFleetError
            raise kind(
                f"{self.request.digest[:19]} ({self.request.variant}) is not on "
                f"{len(lacking)} of {len(all_)} nodes; nothing was started",
                detail="\n".join(lacking.values()),
                hint=f"bring it there: python build.py distribute {self.request.variant}",
            )
        identities = {held.identity for one in all_ if (held := one.has(self.image)) is not None}
        if len(identities) > 1:
            raise MixedFleetError(
                "the nodes' images differ in platform, config or layers; nothing was started",
                hint=f"bring one everywhere: python build.py distribute {self.request.variant}",
            )

    def _place(self, session: NodeSession) -> Place:
        now, link, held = session.now, fabric.data_link(session.now), session.has(self.image)
        assert held is not None
        several = self.request.profile.nodes > 1
        return Place(
            node=session.name,
            docker=tuple(session.remote.docker.split()),
            address=link.address or session.remote.node.control,
            # Alone nobody else calls it.
            interface=link.interface.name if several else "",
            hcas=fabric.hcas(now),
            image=held.id,
            caches=now.caches,
        )

    def _require(self, all_: Sequence[NodeSession], checks: Sequence[Check]) -> None:
        """These checks of the doctor's hold on all nodes. Raises ``LaunchError`` with all that is
        wrong at once."""
        request, profile = self.request, self.request.profile
        cluster = ClusterReport(
            nodes=tuple(NodeReport(node=one.remote.node, snapshot=one.now) for one in all_),
            model=request.model, port=profile.port, master_port=profile.master_port,
            rdma=request.rdma, gpus=profile.gpus,
        )  # fmt: skip
        failed = [one for one in doctor.examine(cluster, checks).findings if one.severity is FAIL]
        names = {name for one in failed for name in one.nodes}
        if failed:
            raise LaunchError(
                f"{len(names)} of {len(all_)} nodes cannot run it; nothing was started",
                detail="\n".join(
                    f"✗ {', '.join(one.nodes)}: {one.what} ({one.check})\n    → {one.fix}"
                    for one in failed
                ),
                hint="more about the nodes: python build.py doctor --model "
                + shlex.quote(request.model),
            )

    def _there(self, all_: Sequence[NodeSession]) -> Deployment | None:
        """A set of this name. Raises ``LaunchError`` where it runs and is not to give way."""
        there = sets.judge(one for session in all_ for one in sets.members(session.now))
        found = next((one for one in there if one.name == self.request.name), None)
        if found is not None and found.lives and not self.options.replace:
            where = ", ".join(one.node for one in found.members if one.lives)
            what = "runs already" if not found.problems else "is there, and broken"
            raise LaunchError(
                f"{found.name} {what} (on {where}); nothing was started",
                detail="\n".join(found.problems),
                hint="replace it: --replace; stop it: python build.py stop; or another --name",
            )
        return found

    def _make_room(self, all_: Sequence[NodeSession], there: Deployment | None) -> None:
        """Let a set of this name give way, or what is left of one."""
        if there is None:
            return
        self.view.say(f"removing {there.name} from {len(there.members)} nodes")
        errors = sets.end_all(all_, there.members, grace_s=sets.GRACE_S if there.lives else 0)
        if errors:
            raise sets.failure(errors, len(all_), "could not remove it; nothing was started")
        head = all_[HEAD]
        head.seen = head.look(IMAGES, CONTAINERS, MACHINE, model=self.request.model)
        self._require(all_, [PORTS])

    # Start

    def _start(self, all_: Sequence[NodeSession], planned: Sequence[Container]) -> None:
        by_node = {one.node: one for one in planned}

        def folders(session: NodeSession) -> None:
            caches = by_node[session.name].caches
            if caches:
                session.remote.run(["mkdir", "-p", "--", *caches])

        def start(session: NodeSession) -> None:
            self._run(session, by_node[session.name])

        errors = run_on_all(all_, folders)
        if errors:
            raise sets.failure(errors, len(all_), "cannot have folders for caches")
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

    def _run(self, session: NodeSession, container: Container) -> None:
        done = session.remote.run(container.argv, check=False, timeout_s=START_S)
        if done.returncode == 0:
            self._started.setdefault(session.name, []).append(done.stdout.split()[-1])
            return
        # `docker run` leaves what it made and could not start.
        made = [
            one.id
            for one in sets.members(session.look(CONTAINERS))
            if one.set == container.name and one.state == "created"
        ]
        self._started.setdefault(session.name, []).extend(made)
        said = done.stderr.strip()
        matches = knowledge.read(said.splitlines())
        raise LaunchError(
            f"{session.name} (rank {container.rank}): docker run failed",
            detail="\n".join([said, *waiting.tell(matches)]),
            hint=matches[0].entry.fix if matches else f"look there: {session.remote.ssh}",
        )

    @contextmanager
    def _all_or_none(self, all_: Sequence[NodeSession]) -> Iterator[None]:
        """What is begun within stands as a whole, or is undone."""
        try:
            yield
        except BaseException as error:
            # Not handled, only undone.
            if self.options.keep:
                waiting.note(error, "what was started was kept; python build.py stop ends it")
                raise
            left = self._undo(all_)
            what = "what was started has been stopped"
            if left:
                what = f"what was started may still run on {', '.join(left)}: python build.py stop"
            waiting.note(error, what)
            raise

    def _undo(self, all_: Sequence[NodeSession]) -> list[str]:
        """Stop what this launch started; the nodes where that did not work."""
        mine = [one for one in all_ if self._started.get(one.name)]
        if mine:
            self.view.say(f"stopping what was started on {', '.join(one.name for one in mine)}")
        errors = run_on_all(
            mine, lambda one: sets.end(one, self._started[one.name], grace_s=QUICK_S)
        )  # fmt: skip
        return sorted(errors)
