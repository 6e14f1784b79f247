import dataclasses

import pytest

from executor_svc.config import DEFAULT_LISTEN, ExecutorConfig, build_parser, flag, parse_config


def test_no_flags_give_the_defaults() -> None:
    config = parse_config([])
    assert config == ExecutorConfig()
    assert (config.block_size, config.max_num_seqs, config.gpu_memory_utilization) == (16, 256, 0.9)
    assert (config.listen, config.model, config.num_kv_blocks) == (DEFAULT_LISTEN, None, None)


def test_every_field_has_its_flag_with_a_help_text() -> None:
    actions = {action.dest: action for action in build_parser()._actions if action.dest != "help"}
    assert set(actions) == {field.name for field in dataclasses.fields(ExecutorConfig)}
    for name, action in actions.items():
        assert action.option_strings == [flag(name)]
        assert action.help


def test_every_flag_sets_its_field() -> None:
    values = {
        "model": "some/dir",
        "listen": "unix:/tmp/x",
        "device": "cuda",
        "dtype": "bfloat16",
        "tensor_parallel_size": 1,
        "all_reduce": "two-shot",
        "block_size": 32,
        "num_kv_blocks": 100,
        "gpu_memory_utilization": 0.5,
        "max_num_seqs": 3,
        "max_model_len": 99,
        "max_num_batched_tokens": 55,
        "max_num_decode_steps": 2,
        "max_plans_in_flight": 3,
        "attention_backend": "reference",
        "load_format": "dummy",
        "seed": 7,
        "profile_dir": "some/profiles",
        "tls_cert": "cert.pem",
        "tls_key": "key.pem",
        "tls_client_ca": "ca.pem",
        "secret_file": "secret",
        "log_level": "debug",
        "virtual_step_ms": 0.5,
        "virtual_token_us": 0.25,
        "virtual_kv_token_ns": 2.0,
        "virtual_vocab_size": 11,
    }
    switches = (
        *("enforce_eager", "no_resident_decode", "verify"),
        *("virtual", "virtual_poison", "insecure", "no_watchdog"),
    )
    arguments = [text for name, value in values.items() for text in (flag(name), str(value))]
    config = parse_config([*arguments, *map(flag, switches)])
    assert config == ExecutorConfig(**values, **dict.fromkeys(switches, True))  # type: ignore[arg-type]
    assert set(values) | set(switches) == {field.name for field in dataclasses.fields(ExecutorConfig)}


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("listen", "nowhere"),
        ("listen", "host:99999"),
        ("listen", "unix:"),
        ("listen", "0.0.0.0:1"),
        ("tls_cert", "cert.pem"),
        ("tls_key", "key.pem"),
        ("tls_client_ca", "ca.pem"),
        ("secret_file", ""),
        ("model", ""),
        ("device", "tpu"),
        ("dtype", "float16"),
        ("tensor_parallel_size", "0"),
        ("all_reduce", "three-shot"),
        ("block_size", "0"),
        ("block_size", "many"),
        ("num_kv_blocks", "1"),
        ("gpu_memory_utilization", "0"),
        ("gpu_memory_utilization", "1.1"),
        ("gpu_memory_utilization", "nan"),
        ("max_num_seqs", "0"),
        ("max_model_len", "1"),
        ("max_num_batched_tokens", "255"),
        ("max_num_decode_steps", "0"),
        ("max_plans_in_flight", "0"),
        ("attention_backend", "magic"),
        ("load_format", "gguf"),
        ("seed", "-1"),
        ("seed", str(2**64)),
        ("log_level", "loud"),
        ("virtual_step_ms", "-1"),
        ("virtual_token_us", "inf"),
        ("virtual_kv_token_ns", "nan"),
        ("virtual_vocab_size", "1"),
    ],
)
def test_a_wrong_value_ends_with_one_line_that_names_the_flag(
    name: str, value: str, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit) as caught:
        parse_config([f"{flag(name)}={value}"])
    assert caught.value.code == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith("nanoserve-executor: error: ")
    assert flag(name) in line


def test_an_unknown_or_shortened_flag_is_refused_by_name(capsys: pytest.CaptureFixture[str]) -> None:
    for argument in ("--no-such-flag", "--virt"):
        with pytest.raises(SystemExit) as caught:
            parse_config([argument])
        assert caught.value.code == 2
        (line,) = capsys.readouterr().err.splitlines()
        assert argument in line
