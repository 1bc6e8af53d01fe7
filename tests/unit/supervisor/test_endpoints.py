"""Addresses of a run: ports that are free, and hosts that can be used."""

import re
import socket
import subprocess
import sys
from pathlib import Path

import pytest

from config import ConfigError
from config.resolve import resolve
from protocol.lifetime import dying_with_parent
from supervisor.cli.main import main
from supervisor.endpoints import check_hosts, check_launch, check_shards, free_port
from supervisor.job import prepare_job


def test_free_ports_differ_and_are_none_that_outgoing_connections_get():
    """Free ports differ, and none is one that outgoing connections get.

    So one is still free when, seconds later, the process that it was chosen for listens on it.
    """
    ports = [free_port() for _ in range(200)]
    assert len(set(ports)) == 200 and all(10_000 <= port < 32_768 for port in ports)


@pytest.mark.slow
def test_a_port_that_another_process_has_chosen_is_passed_over():
    """Its process may not listen on it yet."""
    chosen = free_port() + 1  # the one that would be tried next
    reserve = (
        f"import sys, supervisor.endpoints as e; print(e.reserve_port({chosen}), flush=True); "
        "sys.stdin.read()"
    )
    command = [sys.executable, "-c", reserve]
    with subprocess.Popen(
        command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, preexec_fn=dying_with_parent()
    ) as other:
        assert other.stdout.readline() == b"True\n"
        assert free_port() != chosen
        other.stdin.close()


def test_a_port_that_is_taken_is_passed_over():
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", free_port() + 1))  # the one that would be tried next
        assert free_port() != taken.getsockname()[1]


@pytest.mark.parametrize("name", ["controller.host", "learner.host", "dashboard.host"])
@pytest.mark.parametrize("host", ["192.0.2.1", "::1", "a" * 64])
def test_a_host_that_is_not_this_machine_is_refused_by_the_name_of_its_setting(
    tmp_path: Path, name: str, host: str
):
    settings = {
        name: host,
        "dashboard.token": "sesame",
        "controller.port": str(free_port()),
        "run.dir": str(tmp_path / "run"),
    }
    with pytest.raises(
        ConfigError,
        match=(
            rf"^{re.escape(name)}: '{host}' is no IPv4 address of this machine; "
            r"give one that is, or 0\.0\.0\.0"
        ),
    ):
        prepare_job(resolve(overrides=settings), resume=False, model=None)
    assert not (tmp_path / "run").exists()


def test_another_machine_at_an_ipv6_address_is_refused(capsys: pytest.CaptureFixture):
    for refuse in (
        lambda: check_hosts(resolve(overrides={"cluster.shard_hosts": "10.0.0.2,fd00::17"})),
        lambda: check_hosts(
            resolve(overrides={"cluster.learner_launch": "srun", "learner.host": "fd00::17"})
        ),
    ):
        with pytest.raises(
            ConfigError, match=r"fd00::17 is an IPv6 address, and a run uses IPv4; give"
        ):
            refuse()
    assert main(["actor", "--connect", "tcp://[::1]:5555"]) == 2
    assert "--connect: ::1 is an IPv6 address" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("changed", "message"),
    [
        ({"run.weights_dir": ""}, r"cluster\.learner_launch: .* run\.weights_dir"),
        ({"learner.host": ""}, r"cluster\.learner_launch: .* learner\.host"),
        ({"controller.host": "0.0.0.0"}, r"controller\.host: .* not 0\.0\.0\.0"),
        ({"controller.host": "127.0.0.1"}, r"controller\.host: .* not 127\.0\.0\.1"),
        ({"learner.host": "0.0.0.0"}, r"learner\.host: .* not 0\.0\.0\.0"),
    ],
)
def test_a_learner_elsewhere_needs_addresses_and_a_disk_of_both_machines(
    tmp_path: Path, changed: dict[str, str], message: str
):
    settings = {
        "cluster.learner_launch": "srun,-w,node7",
        "learner.host": "10.9.8.7",
        "controller.host": "10.9.8.6",
    }
    settings |= {"run.weights_dir": str(tmp_path / "weights"), "run.dir": str(tmp_path / "run")}
    with pytest.raises(ConfigError, match=message):
        prepare_job(resolve(overrides=settings | changed), resume=False, model=None)
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize(
    ("changed", "message"),
    [
        (
            {"cluster.learner_launch": "srun,-w,node7"},
            r"set cluster\.learner_launch, with \{machine",
        ),
        ({"cluster.learner_launch": ""}, r"set cluster\.learner_launch, with \{machine"),
        ({"learner.ranks": "3"}, r"equally many of 3 ranks \(learner\.ranks\)"),
    ],
)
def test_ranks_on_several_machines_are_started_there_and_dealt_evenly(
    changed: dict[str, str], message: str
) -> None:
    settings = {
        "cluster.learner_machines": "2",
        "cluster.learner_launch": "srun,--relative={machine}",
        "learner.ranks": "4",
        "learner.host": "10.9.8.7",
        "controller.host": "10.9.8.6",
        "run.weights_dir": "/shared/weights",
    }
    check_launch(resolve(overrides=settings))
    with pytest.raises(ConfigError, match=rf"cluster\.learner_machines: .*{message}"):
        check_launch(resolve(overrides=settings | changed))


ELSEWHERE = {
    "cluster.shards": "2",
    "engine.count": "2",
    "cluster.shard_hosts": "10.0.0.2",
    "cluster.shard_launch": "srun,--relative={shard}",
    "controller.host": "10.0.0.1",
    "run.weights_dir": "/shared/weights",
}


@pytest.mark.parametrize(
    ("settings", "names"),
    [
        ({"cluster.shards": "3", "engine.count": "2"}, "engine.count"),
        ({"cluster.shards": "2"}, "engine.count"),
        (
            {"cluster.shards": "2", "engine.count": "2", "engine.weights": "nccl"},
            "engine.weights",
        ),
        (ELSEWHERE | {"cluster.shard_launch": ""}, "cluster.shard_launch"),
        (ELSEWHERE | {"cluster.shard_hosts": "10.0.0.2,10.0.0.3"}, "2 addresses for 1"),
        (ELSEWHERE | {"run.weights_dir": ""}, "run.weights_dir"),
        (ELSEWHERE | {"controller.host": "0.0.0.0"}, "give an address"),
    ],
)
def test_what_shards_cannot_do_is_refused(settings: dict[str, str], names: str):
    with pytest.raises(ConfigError, match=rf"(cluster|controller)\..*{names}"):
        check_shards(resolve(None, settings))
