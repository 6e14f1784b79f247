"""The scheduler's command line."""

from typing import Any

import pytest

from scheduler_svc.config import SchedulerConfig, parse_config
from scheduler_svc.security_flags import security_warnings


def test_without_flags_the_defaults_hold():
    assert parse_config([]) == SchedulerConfig()


def test_every_flag_sets_its_field():
    config = parse_config(
        [
            "--model=/m",
            "--listen=unix:/s",
            "--executor=host:1",
            "--served-model-name=name",
            "--batching=naive",
            "--no-kv-cache",
            "--kv-allocation=contiguous",
            "--priority-aging-seconds=2",
            "--max-queue-tokens=8",
            "--max-plan-ms=0.5",
            "--max-num-batched-tokens=99",
            "--pipeline-depth=3",
            "--max-queue-size=7",
            "--no-enable-prefix-caching",
            "--no-enable-chunked-prefill",
            "--executor-loss-timeout=1.5",
            "--drain-timeout=0",
            "--take-over",
            "--record=/r",
            "--api-key-file=/keys",
            "--tls-cert=/c",
            "--tls-key=/k",
            "--tls-client-ca=/ca",
            "--executor-tls-ca=/eca",
            "--executor-tls-cert=/ec",
            "--executor-tls-key=/ek",
            "--executor-secret-file=/es",
            "--insecure",
            "--log-level=debug",
        ]
    )
    assert config == SchedulerConfig(
        "/m",
        "unix:/s",
        "host:1",
        "name",
        batching="naive",
        kv_cache=False,
        kv_allocation="contiguous",
        priority_aging_seconds=2.0,
        max_queue_tokens=8,
        max_plan_ms=0.5,
        max_num_batched_tokens=99,
        pipeline_depth=3,
        max_queue_size=7,
        enable_prefix_caching=False,
        enable_chunked_prefill=False,
        executor_loss_timeout=1.5,
        drain_timeout=0.0,
        take_over=True,
        record="/r",
        api_key_file="/keys",
        tls_cert="/c",
        tls_key="/k",
        tls_client_ca="/ca",
        executor_tls_ca="/eca",
        executor_tls_cert="/ec",
        executor_tls_key="/ek",
        executor_secret_file="/es",
        insecure=True,
        log_level="debug",
    )


@pytest.mark.parametrize(
    ("argument", "named"),
    [
        ("--batching=dynamic", "--batching"),
        ("--kv-allocation=slab", "--kv-allocation"),
        ("--no-kv-cache", "--no-kv-cache"),
        ("--priority-aging-seconds=0", "--priority-aging-seconds"),
        ("--max-queue-tokens=0", "--max-queue-tokens"),
        ("--api-workers=-1", "--api-workers"),
        ("--listen=8080", "--listen"),
        (f"--listen=unix:/{'s' * 107}", "--listen: unix:/sss"),
        (f"--listen=unix:/{'é' * 54}", "107 bytes"),
        ("--listen=0.0.0.0:1", "--insecure"),
        ("--listen=192.168.1.1:1", "--insecure"),
        ("--executor=x", "--executor"),
        ("--api-key-file=", "--api-key-file"),
        ("--tls-cert=/c", "--tls-key"),
        ("--tls-key=/k", "--tls-cert"),
        ("--tls-client-ca=/ca", "--tls-cert"),
        ("--executor-tls-cert=/c", "--executor-tls-key"),
        ("--executor-tls-key=/k", "--executor-tls-cert"),
        ("--pipeline-depth=0", "--pipeline-depth"),
        ("--pipeline-depth=two", "--pipeline-depth"),
        ("--max-queue-size=0", "--max-queue-size"),
        ("--max-num-batched-tokens=0", "--max-num-batched-tokens"),
        ("--executor-loss-timeout=nan", "--executor-loss-timeout"),
        ("--drain-timeout=-1", "--drain-timeout"),
        ("--log-level=loud", "--log-level"),
        ("--model=", "--model"),
        ("--served-model-name=", "--served-model-name"),
        ("--record=", "--record"),
    ],
)
def test_a_wrong_flag_is_named_in_one_line(argument: str, named: str, capsys: pytest.CaptureFixture[str]):
    with pytest.raises(SystemExit) as end:
        parse_config([argument])
    assert end.value.code == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert named in line


def test_the_longest_path_of_a_socket_is_accepted():
    assert SchedulerConfig(listen=f"unix:/{'s' * 106}").listen.endswith("s")


@pytest.mark.parametrize("choices", ["{paged,contiguous}", "{debug,info,warning,error}", "continuous"])
def test_the_help_lists_the_choices(choices: str, capsys: pytest.CaptureFixture[str]):
    with pytest.raises(SystemExit) as end:
        parse_config(["--help"])
    assert end.value.code == 0
    listed = capsys.readouterr().out.split("--batching {")[1 if choices == "continuous" else 0 :]
    assert any(choices in part.partition("}")[0] + "}" or choices in part for part in listed)


@pytest.mark.parametrize("listen", ["localhost:1", "127.0.0.2:1", "[::1]:1", "unix:/s"])
def test_loopback_needs_no_word_of_consent(listen: str):
    assert SchedulerConfig(listen=listen).listen == listen


EXPOSED = "0.0.0.0:1"
TLS = {"tls_cert": "/c", "tls_key": "/k"}


@pytest.mark.parametrize(
    ("fields", "lacking"),
    [
        ({}, ["--tls-cert", "--api-key-file"]),
        (TLS, ["--api-key-file"]),
        ({"api_key_file": "/keys"}, ["--tls-cert"]),
        ({**TLS, "api_key_file": "/keys"}, []),
        ({**TLS, "tls_client_ca": "/ca"}, []),
    ],
)
def test_beyond_this_machine_both_tls_and_callers_are_asked_for(fields: dict[str, Any], lacking: list[str]):
    meant = SchedulerConfig(listen=EXPOSED, insecure=True, **fields)
    (warning,) = security_warnings(meant) or [""]
    assert all(flag in warning for flag in lacking)
    if not lacking:
        assert not warning
        assert SchedulerConfig(listen=EXPOSED, **fields).listen == EXPOSED
        return
    with pytest.raises(ValueError, match="--insecure"):
        SchedulerConfig(listen=EXPOSED, **fields)


def test_metrics_are_open_to_other_machines_only_when_meant():
    with pytest.raises(ValueError, match=r"--metrics-listen.*--insecure"):
        SchedulerConfig(metrics_listen=EXPOSED)
    assert security_warnings(SchedulerConfig(metrics_listen=EXPOSED, insecure=True))
    assert not security_warnings(SchedulerConfig(metrics_listen="127.0.0.1:1"))


def test_a_secret_goes_to_another_machine_only_with_tls():
    secret = {"executor": "10.0.0.1:1", "executor_secret_file": "/s"}
    with pytest.raises(ValueError, match="--executor-secret-file"):
        SchedulerConfig(**secret)
    assert security_warnings(SchedulerConfig(**secret, insecure=True))
    assert not security_warnings(SchedulerConfig(**secret, executor_tls_ca="/ca"))
