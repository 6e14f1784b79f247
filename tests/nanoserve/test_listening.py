"""Whose socket file is removed, and whose is not."""

import os
import socket
from pathlib import Path

import pytest

from nanoserve.listening import BoundSocket, check_free


def listener(path: Path) -> socket.socket:
    sock = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    sock.bind(str(path))
    sock.listen(0)
    return sock


def test_a_dead_servers_socket_is_removed(tmp_path: Path):
    path = tmp_path / "s"
    listener(path).close()
    check_free(f"unix:{path}")
    assert not path.exists()


def test_a_server_too_busy_to_answer_keeps_its_socket(tmp_path: Path):
    path = tmp_path / "s"
    clients: list[socket.socket] = []
    with listener(path):
        error = 0
        while not error:  # until nobody more can connect
            clients.append(socket.socket(socket.AF_UNIX, socket.SOCK_STREAM))
            clients[-1].setblocking(False)
            error = clients[-1].connect_ex(str(path))
        with pytest.raises(ValueError, match=r"--listen: .*in use"):
            check_free(f"unix:{path}")
        assert path.exists()
    for client in clients:
        client.close()


def test_a_socket_of_another_kind_is_left_alone(tmp_path: Path):
    path = tmp_path / "s"
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as sock:
        sock.bind(str(path))
        with pytest.raises(ValueError, match="--listen"):
            check_free(f"unix:{path}")
        assert path.exists()


def test_at_the_end_only_the_own_socket_is_removed(tmp_path: Path):
    path = tmp_path / "s"
    with listener(path):
        first = BoundSocket(f"unix:{path}")
        os.rename(path, tmp_path / "kept")  # so that its inode is not used again
        with listener(path):
            second = BoundSocket(f"unix:{path}")
            first.remove()
            assert path.exists()
            second.remove()
            assert not path.exists()
            second.remove()
