"""What a worker and its launcher ask the machine for: threads and a port."""

import os
import socket

import pytest

from mads.launch.processes import OWN_PORTS, Place, cpu_threads, free_port

WHERE = Place(rank=1, local_rank=1, world_size=2, local_world_size=2)


@pytest.mark.parametrize("asked", [None, "", "4,2", "0", "many"])
def test_without_a_number_of_threads_a_worker_takes_its_share_of_the_cores(monkeypatch, asked):
    monkeypatch.delenv("OMP_NUM_THREADS") if asked is None else monkeypatch.setenv("OMP_NUM_THREADS", asked)
    for cores, threads in ((8, 4), (3, 1), (1, 1), (None, 1)):
        monkeypatch.setattr(os, "cpu_count", lambda cores=cores: cores)
        assert cpu_threads(WHERE) == threads


def test_the_number_of_threads_that_the_user_asks_for_is_taken(monkeypatch):
    monkeypatch.setenv("OMP_NUM_THREADS", "3")
    monkeypatch.setattr(os, "cpu_count", lambda: 64)
    assert cpu_threads(WHERE) == 3


def test_a_port_is_free_and_not_one_that_the_system_draws():
    ports = {free_port() for _ in range(20)}
    assert len(ports) > 1 and ports <= set(OWN_PORTS)
    for port in ports:
        with socket.socket() as s:
            s.bind(("127.0.0.1", port))


def test_ports_in_use_are_passed_over(monkeypatch):
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        number = taken.getsockname()[1]
        monkeypatch.setattr("mads.launch.processes.OWN_PORTS", [number] * 20)
        assert free_port() not in (0, number)
