"""Starts one image on the nodes of a fleet as one server, or on none of them.

Look, decide, start, wait, prove. The head goes first: the workers of vLLM's multi-node mode call
its master port, and try again until it answers, while nothing answers for a head that is not
there (https://docs.vllm.ai/en/latest/serving/parallelism_scaling/). What a launch has started it
stops again when it fails or is interrupted, unless it is told to keep it.
"""

from __future__ import annotations

import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

from sparkimage.config.inventory import Fleet
from sparkimage.core.errors import ImageMissingError, LaunchError, MixedFleetError, SparkError
from sparkimage.core.progress import View
from sparkimage.image.store import Image
from sparkimage.nodes.concurrent import Errors, together
from sparkimage.nodes.retag import lines
from sparkimage.nodes.session import Station, stations
from sparkimage.serve import command, placement, sets, waiting
from sparkimage.serve.command import Container, Place, Request
from sparkimage.serve.doctor import asking
from sparkimage.serve.doctor.facts import Facts
from sparkimage.serve.explain import knowledge
from sparkimage.serve.proof import Finding
from sparkimage.serve.screen import screen
from sparkimage.serve.sets import HEAD, Here, Judged, Member
from sparkimage.serve.waiting import Expected, Rank, Waiting

START_S = 120.0
"""Seconds that Docker may take to start one container."""
TOOLKIT = "there: sudo apt-get install nvidia-container-toolkit; sudo systemctl restart docker"
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


@dataclass(frozen=True, kw_only=True)
class Ready:
    """A set that serves, and what was proven of it."""

    name: str
    variant: str
    profile: str
    digest: str
    url: str
    ranks: tuple[tuple[int, str, str], ...]
    """Rank, node, container."""
    findings: tuple[Finding, ...]
    seconds: float

    def to_dict(self) -> dict[str, Any]:
        """For ``--json``."""
        return {
            "name": self.name,
            "variant": self.variant,
            "profile": self.profile,
            "digest": self.digest,
            "url": self.url,
            "seconds": round(self.seconds, 3),
            "ranks": [
                {"rank": rank, "node": node, "container": id} for rank, node, id in self.ranks
            ],
            "proof": [one.to_dict() for one in self.findings],
        }


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
    _here: dict[str, Here] = field(default_factory=dict)
    _facts: dict[str, Facts] = field(default_factory=dict)
    _started: dict[str, list[str]] = field(default_factory=dict)
    """Ids of the containers that this launch made, by node."""

    def plan(self) -> tuple[Container, ...]:
        """What would be started, decided from what the nodes are; nothing is changed.

        Raises ``NodeError`` and its kin, ``LaunchError``, ``MixedFleetError``.
        """
        with stations(self.fleet, self.options.patience_s) as all_:
            return self._plan(all_)

    def run(self) -> Ready:
        """Start it, and wait until it serves and is proven. Raises ``LaunchError``, ``NodeError``
        and their kin; then nothing that was started is left, unless ``keep``."""
        began = time.monotonic()
        with stations(self.fleet, self.options.patience_s) as all_:
            planned = self._plan(all_)
            there = self._there()
            self._check(all_)
            self._make_room(all_, there)
            with self._all_or_none(all_):
                self._start(all_, planned)
                findings = self._wait(all_)
            return Ready(
                name=self.request.name,
                variant=self.request.variant,
                profile=self.request.profile_name,
                digest=self.request.digest,
                url=url(self._place(all_[HEAD]).address, self.request.profile.port),
                ranks=tuple(
                    (rank, one.name, self._started[one.name][0][:12])
                    for rank, one in enumerate(all_)
                ),
                findings=findings,
                seconds=time.monotonic() - began,
            )

    # Look and decide

    def _plan(self, all_: Sequence[Station]) -> tuple[Container, ...]:
        def one(station: Station) -> None:
            station.connect(lock=False, who="")
            self._here[station.name] = sets.look(station)
            self._facts[station.name] = asking.ask(
                station.remote, station.remote.docker, self.request.model
            )

        with self.view.busy("looking at the nodes"):
            errors = together(all_, one, stop=Station.abandon)
        if errors:
            raise sets.failure(errors, len(all_), "cannot be asked; nothing was started")
        self._equal(all_)
        return command.containers(self.request, [self._place(station) for station in all_])

    def _equal(self, all_: Sequence[Station]) -> None:
        """Every node has the image itself: asked of it, not assumed."""
        lacking = {}
        for station in all_:
            if station.has(self.image) is not None:
                continue
            other = station.now.by_tag(self.image_name)
            what = f"has another image as {self.image_name}" if other else "does not have it"
            lacking[station.name] = f"✗ {station.name} {what}"
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

    def _place(self, station: Station) -> Place:
        node, known = station.remote.node, self._facts[station.name]
        here = self._here[station.name]
        resolved = next((one for one in here.addresses if known.interface_of(one)), "")
        if self.request.profile.nodes > 1:
            address, interface = placement.address(node, known, resolved)
        else:
            # Nobody else calls it.
            address, interface = resolved or known.used_address or node.control, ""
        held = station.has(self.image)
        assert held is not None
        return Place(
            node=station.name,
            docker=tuple(station.remote.docker.split()),
            address=address,
            interface=interface,
            hcas=placement.hcas(node, known, interface),
            image=held.id,
            caches=here.caches,
        )

    # Preflight

    def _check(self, all_: Sequence[Station]) -> None:
        """Whether every node can run it; all that is wrong at once."""
        wrong: Errors = {}
        for rank, station in enumerate(all_):
            said = list(self._wrong(rank, station))
            if said:
                wrong[station.name] = LaunchError(
                    f"{station.name}: {said[0][0]}",
                    detail="\n".join(f"{what} → {todo}" for what, todo in said[1:]),
                    hint=said[0][1],
                )
        if wrong:
            raise LaunchError(
                f"{len(wrong)} of {len(all_)} nodes cannot run it; nothing was started",
                detail="\n".join(lines(wrong)),
                hint="more about the nodes: python build.py doctor",
            )

    def _wrong(self, rank: int, station: Station) -> Iterator[tuple[str, str]]:
        known, node = self._facts[station.name], station.remote.node
        model = known.model
        if model.state != "folder":
            what = "cannot be read" if model.state == "closed" else "is not there"
            yield f"the model folder {self.request.model} {what}", "put it on every node"
        elif not model.files:
            yield f"the model folder {self.request.model} is empty", "download the model there"
        elif model.lacking:
            some = ", ".join(model.lacking[:3])
            yield (
                f"the model lacks {len(model.lacking)} files that its index names: {some}",
                "download it again there",
            )
        gpus = node.gpus if node.gpus is not None else len(known.gpus) if known.smi else None
        if gpus is not None and gpus < self.request.profile.gpus:
            yield (
                f"it has {gpus} GPUs, the profile wants {self.request.profile.gpus}",
                "take another profile, or `gpus` of the node in the fleet file",
            )
        if not known.gpus_flag:
            yield (
                "its Docker cannot do --gpus: NVIDIA's container toolkit is not there",
                TOOLKIT,
            )
        if self.request.rdma and not known.verbs:
            yield (
                "/dev/infiniband has no verbs device: RDMA cannot work",
                "there: sudo modprobe ib_uverbs; or `rdma: false` in the profile (slow)",
            )
        if any(member.set == self.request.name for member in self._here[station.name].members):
            # What it uses now is free when it has given way.
            return
        yield from self._ports(rank, known)

    def _ports(self, rank: int, known: Facts) -> Iterator[tuple[str, str]]:
        profile = self.request.profile
        wanted = {"the API": profile.port} if rank == HEAD else {}
        if rank == HEAD and profile.nodes > 1:
            wanted["the ranks"] = profile.master_port
        for what, port in wanted.items():
            if known.listens(port):
                yield (
                    f"port {port} (for {what}) is in use",
                    f"there: ss -ltnp 'sport = :{port}'; or another port in the profile",
                )

    def _there(self) -> Judged | None:
        """A set of this name. Raises ``LaunchError`` where it runs and is not to give way."""
        there = sets.judge(one for here in self._here.values() for one in here.members)
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

    def _make_room(self, all_: Sequence[Station], there: Judged | None) -> None:
        """Let a set of this name give way, or what is left of one."""
        if there is None:
            return
        self.view.say(f"removing {there.name} from {len(there.members)} nodes")
        errors = _end(all_, there.members, grace_s=sets.GRACE_S if there.lives else 0)
        if errors:
            raise sets.failure(errors, len(all_), "could not remove it; nothing was started")
        self._after_removal(all_)

    def _after_removal(self, all_: Sequence[Station]) -> None:
        """The ports that it had are free now."""
        station = all_[HEAD]
        self._facts[station.name] = asking.ask(
            station.remote, station.remote.docker, self.request.model
        )
        for what, todo in self._ports(HEAD, self._facts[station.name]):
            raise LaunchError(f"{station.name}: {what}; nothing was started", hint=todo)

    # Start

    def _start(self, all_: Sequence[Station], planned: Sequence[Container]) -> None:
        by_node = {one.node: one for one in planned}

        def folders(station: Station) -> None:
            caches = by_node[station.name].caches
            if caches:
                station.remote.run(["mkdir", "-p", "--", *caches])

        def start(station: Station) -> None:
            self._run(station, by_node[station.name])

        errors = together(all_, folders)
        if errors:
            raise sets.failure(errors, len(all_), "cannot have folders for caches")
        self.view.say(f"starting the head on {all_[HEAD].name}")
        errors = together(all_[:1], start)
        if not errors and len(all_) > 1:
            self.view.say(f"starting {len(all_) - 1} workers")
            errors = together(all_[1:], start)
        if errors:
            raise LaunchError(
                f"{len(errors)} of {len(all_)} nodes could not start it",
                detail="\n".join(lines(errors)),
            )

    def _run(self, station: Station, container: Container) -> None:
        done = station.remote.run(container.argv, check=False, timeout_s=START_S)
        if done.returncode == 0:
            self._started.setdefault(station.name, []).append(done.stdout.split()[-1])
            return
        # `docker run` leaves what it made and could not start.
        made = [
            one.id
            for one in sets.look(station).members
            if one.set == container.name and one.state == "created"
        ]
        self._started.setdefault(station.name, []).extend(made)
        said = done.stderr.strip()
        matches = knowledge.read(said.splitlines())
        raise LaunchError(
            f"{station.name} (rank {container.rank}): docker run failed",
            detail="\n".join([said, *waiting.tell(matches)]),
            hint=matches[0].entry.fix if matches else f"look there: {station.remote.ssh}",
        )

    def _wait(self, all_: Sequence[Station]) -> tuple[Finding, ...]:
        ranks = [
            Rank(rank=rank, station=one, container=self._started[one.name][0])
            for rank, one in enumerate(all_)
        ]
        return wait(
            ranks,
            title=f"{self.request.name}: {self.request.variant}, {self.request.profile_name}",
            port=self.request.profile.port,
            expected=Expected(
                nccl=self.request.nccl, rdma=self.request.rdma, gpus=self.request.profile.gpus
            ),
            timeout_s=self.options.timeout_s,
            view=self.view,
        )

    @contextmanager
    def _all_or_none(self, all_: Sequence[Station]) -> Iterator[None]:
        """What is begun within stands as a whole, or is undone."""
        try:
            yield
        except BaseException as error:
            # Not handled, only undone.
            if self.options.keep:
                _note(error, "what was started was kept; python build.py stop ends it")
                raise
            left = self._undo(all_)
            what = "what was started has been stopped"
            if left:
                what = f"what was started may still run on {', '.join(left)}: python build.py stop"
            _note(error, what)
            raise

    def _undo(self, all_: Sequence[Station]) -> list[str]:
        """Stop what this launch started; the nodes where that did not work."""
        mine = [one for one in all_ if self._started.get(one.name)]
        if mine:
            self.view.say(f"stopping what was started on {', '.join(one.name for one in mine)}")
        errors = together(
            mine, lambda one: sets.end(one, self._started[one.name], grace_s=QUICK_S)
        )  # fmt: skip
        return sorted(errors)


def url(address: str, port: int) -> str:
    """Where the API is."""
    host = f"[{address}]" if ":" in address else address
    return f"http://{host}:{port}/v1"


def wait(
    ranks: Sequence[Rank],
    *,
    title: str,
    port: int,
    expected: Expected,
    timeout_s: float,
    view: View,
) -> tuple[Finding, ...]:
    """Until the set serves; what was proven. Raises ``LaunchError``, also for a failed proof."""
    with screen(view, [one.name for one in ranks], title) as shown:
        one = Waiting(ranks=ranks, port=port, expected=expected, timeout_s=timeout_s, screen=shown)
        findings = one.run()
    failed = [one for one in findings if not one.ok]
    if failed:
        raise ProofError(findings, known=one.known())
    return findings


class ProofError(LaunchError):
    """The set serves, but its logs do not show what they must: it is not what was asked for."""

    def __init__(self, findings: Sequence[Finding], *, known: Sequence[str] = ()) -> None:
        failed = [one for one in findings if not one.ok]
        super().__init__(
            f"the proof failed: {len(failed)} of {len(findings)} findings in the ranks' logs",
            detail="\n".join(
                [
                    *(
                        f"✗ {one.node} (rank {one.rank}): looked for: {one.what}; seen: {one.seen}"
                        for one in failed
                    ),
                    *known,
                ]
            ),
        )
        self.findings = tuple(findings)


def _note(error: BaseException, what: str) -> None:
    if isinstance(error, SparkError):
        error.message = f"{error.message}; {what}"
    else:
        error.add_note(what)


def _end(all_: Sequence[Station], members: Sequence[Member], *, grace_s: int) -> Errors:
    mine: dict[str, list[str]] = {}
    for one in members:
        mine.setdefault(one.node, []).append(one.id)
    concerned = [one for one in all_ if one.name in mine]
    return together(concerned, lambda one: sets.end(one, mine[one.name], grace_s=grace_s))
