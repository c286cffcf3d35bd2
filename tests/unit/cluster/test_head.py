import os
import subprocess
import threading
from collections.abc import Iterator
from pathlib import Path

import psutil
import pytest

from cluster.head import RESTARTED, Child, watch_over
from cluster.processes import MARKER, RAYLET, end_processes, wait_until

GCS, DASHBOARD = RESTARTED


class Node:
    """Programs called as Ray's are, which do nothing, and a head that watches over them."""

    def __init__(self, folder: Path) -> None:
        self.mark = str(folder)
        self.started: list[subprocess.Popen[bytes]] = []
        for part in (RAYLET, GCS, DASHBOARD):
            self.write(part, "sleep 60")
            self.start(part)
        self.raylet = Child.find(self.mark, RAYLET)
        self.children = {part: Child.find(self.mark, part) for part in RESTARTED}
        self.head = threading.Thread(
            target=watch_over, args=(self.raylet, list(self.children.values()))
        )
        self.head.start()

    def write(self, part: str, line: str) -> None:
        """Let the program of a part do this, in the words of a shell."""
        Path(self.mark + part).write_text(line + "\n", encoding="utf-8")

    def start(self, part: str) -> None:
        """Start a part as `ray start` would, with something of its own in its environment."""
        environment = {**os.environ, MARKER: self.mark, "PART": part}
        command = ["/bin/sh", self.mark + part, "an option"]
        self.started.append(subprocess.Popen(command, env=environment))

    def has_ended(self) -> bool:
        """Whether the head gave up."""
        self.head.join(20.0)
        return not self.head.is_alive()


@pytest.fixture
def node(tmp_path: Path) -> Iterator[Node]:
    node = Node(tmp_path)
    try:
        yield node
    finally:
        node.raylet.process.kill()
        node.head.join()
        end_processes(node.mark)
        again = [child.ours for child in node.children.values() if child.ours]
        for process in node.started + again:
            process.wait()


@pytest.mark.parametrize("part", RESTARTED)
def test_what_the_node_outlives_is_started_again_as_it_was(node: Node, part: str) -> None:
    dead = node.children[part].process
    dead.kill()
    assert wait_until(lambda: node.children[part].process != dead, 20.0)
    again = node.children[part].process
    assert wait_until(lambda: again.cmdline() == ["/bin/sh", node.mark + part, "an option"], 5.0)
    assert again.environ()["PART"] == part
    assert node.head.is_alive()


def test_the_node_ends_with_its_raylet(node: Node) -> None:
    node.raylet.process.kill()
    assert node.has_ended()


def test_what_dies_again_and_again_at_once_is_given_up(node: Node) -> None:
    node.write(GCS, "exit 1")
    node.children[GCS].process.kill()
    assert node.has_ended()
    assert psutil.pid_exists(node.raylet.process.pid), "the raylet is for the caller to end"


def test_a_part_that_never_ran_is_named(tmp_path: Path) -> None:
    with pytest.raises(LookupError, match="raylet"):
        Child.find(str(tmp_path), RAYLET)
