"""How a client shows who it is, and the command that makes keys."""

import hashlib
import tomllib
from typing import Any

import fake_server
import pytest
from both_clients import KINDS, call
from certificates import Authorities

import nanoserve_client as ns
from nanoserve_client.cli import main

KEY = "nsk-of-a-test"


@KINDS
@pytest.mark.parametrize("method", ["generate", "tokenize", "stream"])
def test_the_key_goes_with_every_call(kind: str, method: str) -> None:
    servicer = fake_server.FakeServicer(fake_server.echo)
    with fake_server.running(servicer) as address:
        call(kind, address, method, "x", connect={"api_key": KEY})
        call(kind, address, method, "x")
    assert [dict(metadata).get("authorization") for metadata in servicer.metadata] == [f"Bearer {KEY}", None]


@KINDS
@pytest.mark.parametrize("method", ["generate", "tokenize", "stream"])
def test_the_prefix_key_goes_with_every_call_beside_the_api_key(kind: str, method: str) -> None:
    servicer = fake_server.FakeServicer(fake_server.echo)
    with fake_server.running(servicer) as address:
        call(kind, address, method, "x", connect={"api_key": KEY, "prefix_key": "chat-7"})
    shown = dict(servicer.metadata[0])
    assert (shown["authorization"], shown["x-nanoserve-prefix-key"]) == (f"Bearer {KEY}", "chat-7")


@KINDS
@pytest.mark.parametrize(
    ("parameters", "named"),
    [
        ({"api_key": ""}, "api_key"),
        ({"api_key": "two words"}, "api_key"),
        ({"prefix_key": ""}, "prefix_key"),
        ({"prefix_key": "two words"}, "prefix_key"),
        ({"api_key": "schl\u00fcssel"}, "api_key"),
        ({"tls_ca": "/no/such/file"}, "tls_ca"),
        ({"tls_cert": "/c"}, "tls_cert"),
        ({"tls_key": "/k"}, "tls_key"),
        ({"tls_cert": "/c", "tls_key": "/k"}, "tls_cert: needs tls_ca"),
    ],
)
def test_what_is_no_good_is_named_before_a_call(kind: str, parameters: dict[str, Any], named: str) -> None:
    with pytest.raises(ns.InvalidRequest, match=named) as refusal:
        call(kind, "127.0.0.1:1", "generate", "x", connect=parameters)
    assert "words" not in str(refusal.value)


@KINDS
def test_a_key_goes_to_another_machine_only_with_tls_or_when_meant(
    kind: str, authorities: Authorities
) -> None:
    client = ns.Client if kind == "sync" else ns.AsyncClient
    with pytest.raises(ns.InvalidRequest, match="api_key"):
        client("10.0.0.1:1", api_key=KEY)
    client("10.0.0.1:1", api_key=KEY, insecure=True)
    client("10.0.0.1:1", api_key=KEY, tls_ca=authorities.ours.ca)
    client("10.0.0.1:1")


def test_the_command_takes_the_key_from_the_environment(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("NANOSERVE_API_KEY", KEY)
    servicer = fake_server.FakeServicer(fake_server.echo)
    with fake_server.running(servicer) as address:
        assert main(["generate", "--server", address, "x"]) == 0
    assert dict(servicer.metadata[0])["authorization"] == f"Bearer {KEY}"
    assert KEY not in "".join(capsys.readouterr())


def test_a_new_key_is_shown_once_and_its_entry_is_for_the_file(capsys: pytest.CaptureFixture[str]) -> None:
    flags = ["--tenant=team-a", "--max-concurrency=4", "--tokens-per-second=100", "--admin"]
    assert main(["api-key", "new", *flags]) == 0
    assert main(["api-key", "new", "--tenant=team-b"]) == 0
    out, err = capsys.readouterr()
    keys = [line.rpartition(" ")[2] for line in err.splitlines()]
    entries = tomllib.loads(out)["keys"]
    assert len(set(keys)) == 2
    assert entries[0] == {
        "sha256": hashlib.sha256(keys[0].encode()).hexdigest(),
        "tenant": "team-a",
        "max_concurrency": 4,
        "tokens_per_second": 100.0,
        "admin": True,
    }
    assert entries[1] == {"sha256": hashlib.sha256(keys[1].encode()).hexdigest(), "tenant": "team-b"}
    assert not any(key in out for key in keys)


def test_a_tenant_that_could_break_out_of_the_entry_is_refused(capsys: pytest.CaptureFixture[str]) -> None:
    for tenant in ('a"\nadmin = true', "", "a b", "t\u00e4nant"):
        assert main(["api-key", "new", f"--tenant={tenant}"]) == 2
    assert not capsys.readouterr().out
