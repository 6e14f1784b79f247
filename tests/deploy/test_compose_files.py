"""The compose files, without an engine: what `make test-compose` cannot see, or few machines can run."""

import re
import shlex
from typing import Any

import pytest
import yaml
from manifests import ROOT

from executor_svc.config import build_parser as executor_parser
from nanoserve_client.cli import build_parser as client_parser
from scheduler_svc.config import build_parser as scheduler_parser

VARIABLE = re.compile(r"\$\{(\w+)(?::?-([^}]*))?\}")
FILES = ("docker-compose.yml", "compose.gpu.yml")
DOCKERFILE = (ROOT / "deploy" / "Dockerfile").read_text()


def services(name: str) -> dict[str, Any]:
    """A file's services, every variable at its default."""
    text = VARIABLE.sub(lambda match: match[2] or "", (ROOT / name).read_text())
    found: dict[str, Any] = yaml.safe_load(text)["services"]
    return found


DEFAULT = {name: service for name, service in services(FILES[0]).items() if "profiles" not in service}


@pytest.mark.parametrize("file", FILES)
def test_both_services_take_their_flags_and_agree(file: str) -> None:
    found = services(file)
    executor = executor_parser().parse_args(shlex.split(found["executor"]["command"]))
    scheduler = scheduler_parser().parse_args(shlex.split(found["scheduler"]["command"]))
    assert executor.model == scheduler.model == found["prepare"]["command"][0]
    assert scheduler.executor == executor.listen.replace("0.0.0.0", "executor")
    assert scheduler.executor_secret_file == executor.secret_file
    assert scheduler.executor_tls_ca == executor.tls_cert
    assert not executor.insecure


def test_the_gpu_file_changes_no_more_of_the_commands_than_the_model_and_the_device() -> None:
    for service, expected in (
        ("scheduler", {"model"}),
        ("executor", {"model", "device", "tensor-parallel-size"}),
    ):
        commands = (set(shlex.split(services(file)[service]["command"])) for file in FILES)
        changed = {word.lstrip("-").partition("=")[0] for word in set.symmetric_difference(*commands)}
        assert changed == expected


def test_what_can_be_set_is_what_the_example_tells() -> None:
    used = {match[1] for file in FILES for match in VARIABLE.finditer((ROOT / file).read_text())}
    told = set(re.findall(r"^#(\w+)=", (ROOT / ".env.example").read_text(), re.MULTILINE))
    assert used == told


def test_nothing_is_published_beyond_this_machine_and_nothing_of_the_executor() -> None:
    for name, service in services(FILES[0]).items():
        assert all(port.startswith("127.0.0.1:") for port in service.get("ports", ())), name
    assert DEFAULT["executor"]["networks"] == ["link"]
    assert "ports" not in DEFAULT["executor"]
    assert yaml.safe_load((ROOT / FILES[0]).read_text())["networks"]["link"]["internal"]


def test_the_default_profile_needs_no_image_of_others_and_no_setting() -> None:
    assert set(DEFAULT) == {"prepare", "executor", "scheduler"}
    for name, service in DEFAULT.items():
        assert f"FROM runtime AS {service['build']['target']}" in DOCKERFILE.replace(
            "FROM executor", "FROM runtime"
        )
        assert service["image"].startswith("nanoserve-"), name


def test_every_container_is_confined_and_limited() -> None:
    for name, service in services(FILES[0]).items():
        assert service["cap_drop"] == ["ALL"], name
        assert service["security_opt"] == ["no-new-privileges:true"], name
        assert service["deploy"]["resources"]["limits"].keys() >= {"cpus", "memory"}, name
    assert all(service["read_only"] and service["init"] for service in DEFAULT.values())


def test_everything_that_goes_on_is_restarted_and_has_a_health_check() -> None:
    found = services(FILES[0])
    del found["prepare"]
    for name, service in found.items():
        assert service["restart"] == "unless-stopped", name
        is_in_image = name == "scheduler" and 'CMD ["nanoserve", "health"]' in DOCKERFILE
        assert "healthcheck" in service or is_in_image, name
    command = found["executor"]["healthcheck"]["test"]
    assert command[:3] == ["CMD", "nanoserve", "health"]
    health = client_parser().parse_args(command[2:])
    executor = executor_parser().parse_args(shlex.split(found["executor"]["command"]))
    assert health.tls_ca == executor.tls_cert
    assert health.server == executor.listen.replace("0.0.0.0", "localhost")


def test_every_file_that_a_container_is_given_is_here() -> None:
    for service in services(FILES[0]).values():
        for volume in service["volumes"]:
            source = volume.partition(":")[0]
            assert not source.startswith(".") or (ROOT / source).exists(), source


def test_the_dashboard_is_where_grafana_is_told_to_look() -> None:
    provider = yaml.safe_load((ROOT / "deploy/grafana/provisioning/dashboards/nanoserve.yml").read_text())
    folder = provider["providers"][0]["options"]["path"]
    grafana = services(FILES[0])["grafana"]
    assert any(f":{folder}/nanoserve.json" in volume for volume in grafana["volumes"])
    source = yaml.safe_load((ROOT / "deploy/grafana/provisioning/datasources/prometheus.yml").read_text())
    assert source["datasources"][0]["url"] == "http://prometheus:9090"
    job = yaml.safe_load((ROOT / "deploy/prometheus.yml").read_text())["scrape_configs"][0]["dns_sd_configs"][
        0
    ]
    metrics = scheduler_parser().parse_args(shlex.split(DEFAULT["scheduler"]["command"])).metrics_listen
    assert (job["names"], f":{job['port']}") == (["scheduler"], metrics.removeprefix("0.0.0.0"))
