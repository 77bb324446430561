"""How a name moves on a node, through its engine, which is the one of test_engine_api.py."""

from __future__ import annotations

import threading

import pytest

from sparkimage.nodes.retag import FleetUpdate, Retag
from sparkimage.nodes.session import NodeSession
from tests.unit.test_engine_api import Engine, Handler, engine, remote

__all__ = ["engine", "remote"]
OLD, NEW, NAME = "sha256:old", "sha256:new", "r:x"
MOVES = [
    f"POST /images/{OLD}/tag?repo=r&tag=x-previous",
    f"POST /images/{NEW}/tag?repo=r&tag=x",
]


def put(engine: Engine) -> None:
    """Two images, the old one with the name."""
    engine.answers["/images/json"] = [{"Id": OLD}, {"Id": NEW}]
    for id, tags in ((OLD, [NAME]), (NEW, [])):
        image = {"Id": id, "RepoTags": tags}
        engine.answers |= {f"/images/{id}/json": image, f"/images/{id}/tag": named}
    engine.answers[f"/images/{NAME}/json"] = {"Id": OLD}


def named(handler: Handler) -> None:
    handler.say(None, 201)


def move(engine: Engine, *, sudo: bool = False, patience_s: float = 20.0) -> FleetUpdate:
    """A move of the name to the new image; what has failed is in it."""
    remote = engine.remote(sudo=sudo)
    session = NodeSession(remote=remote, seen=engine.look(remote), target=NEW)
    remote.patience_s = patience_s
    engine.asked.clear()
    update = FleetUpdate(name=NAME, sessions=[session])
    update.move([Retag(session=session, tag=NAME)])
    remote.close()
    return update


@pytest.mark.parametrize("sudo", [False, True])
def test_the_image_before_becomes_the_previous_one(engine: Engine, sudo: bool) -> None:
    put(engine)
    assert move(engine, sudo=sudo).errors == {}
    assert engine.asked == [f"GET /images/{NEW}/json", f"GET /images/{NAME}/json", *MOVES]


def test_what_an_engine_refuses_is_undone(engine: Engine) -> None:
    put(engine)
    engine.answers[f"/images/{NEW}/tag"] = lambda handler: handler.say(
        {"message": "write /x: no space left on device"}, 500
    )
    errors = move(engine).errors
    assert errors["n"].message == "n: its disk is full"
    back = [f"POST /images/{OLD}/tag?repo=r&tag=x", f"GET /images/{NAME}-previous/json"]
    assert engine.asked[2:] == [*MOVES, *back]


def test_an_engine_that_hangs_up_or_hangs(engine: Engine) -> None:
    put(engine)
    engine.answers[f"/images/{NEW}/tag"] = lambda handler: setattr(
        handler, "close_connection", True
    )
    assert move(engine).errors["n"].message == "n: its Docker daemon went away"
    hangs = threading.Event()
    engine.answers[f"/images/{NEW}/tag"] = lambda _: hangs.wait(20)
    assert move(engine, patience_s=0.1).errors["n"].message == "n: no progress for 0.1 s: it hangs"
    hangs.set()


def test_nothing_moves_where_something_else_has_moved_it(engine: Engine) -> None:
    put(engine)
    engine.answers[f"/images/{NAME}/json"] = {"Id": "sha256:other"}
    assert "another process moved r:x there meanwhile" in move(engine).errors["n"].message
    assert not [words for words in engine.asked if words.startswith("POST")]
