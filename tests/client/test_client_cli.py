"""The `nanoserve` command: what it prints where, and its exit status."""

import io
import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import fake_server
import grpc
import pytest

from nanoserve.v1 import inference_pb2 as pb
from nanoserve_client.cli import main

NANOSERVE = (sys.executable, "-m", "nanoserve_client")


@pytest.fixture
def servicer() -> fake_server.FakeServicer:
    return fake_server.FakeServicer(fake_server.echo)


@pytest.fixture
def address(servicer: fake_server.FakeServicer) -> Iterator[str]:
    with fake_server.running(servicer) as address:
        yield address


@pytest.fixture
def out(capsys: pytest.CaptureFixture[str]) -> pytest.CaptureFixture[str]:
    return capsys


def refuse(request: pb.GenerateRequest, context: grpc.ServicerContext) -> Iterator[pb.GenerateResponse]:
    fake_server.fail(context, grpc.StatusCode.INVALID_ARGUMENT, "bad\nrequest", {"sampling.top_p": "is 3"})
    yield from ()


def test_generate_prints_the_text_and_a_newline(address: str, out: pytest.CaptureFixture[str]) -> None:
    assert main(["generate", "one two", "--server", address]) == 0
    assert out.readouterr() == ("one two\n", "")


def test_generate_sends_its_flags(address: str, servicer: fake_server.FakeServicer) -> None:
    flags = [
        "--temperature=0.5",
        "--top-k=4",
        "--seed=9",
        "--max-tokens=7",
        "--ignore-eos",
        "--stop=a",
        "--stop=b",
    ]
    assert main(["generate", "x", "--server", address, *flags]) == 0
    assert servicer.requests == [
        pb.GenerateRequest(
            text="x",
            sampling=pb.SamplingParams(temperature=0.5, top_k=4, seed=9),
            stop=pb.StopParams(max_tokens=7, ignore_eos=True, strings=["a", "b"]),
        )
    ]


def test_generate_sends_what_the_output_must_look_like(
    address: str, servicer: fake_server.FakeServicer, tmp_path: Path
) -> None:
    file = tmp_path / "guide"
    file.write_text('{"type": "null"}')
    for flags in (
        ["--regex=a*"],
        ["--choice=a", "--choice=b"],
        [f"--json-schema={file}"],
        [f"--grammar={file}"],
    ):
        assert main(["generate", "x", "--server", address, *flags]) == 0
    assert [request.guided for request in servicer.requests] == [
        pb.GuidedParams(regex="a*"),
        pb.GuidedParams(choice=pb.GuidedChoice(texts=["a", "b"])),
        pb.GuidedParams(json_schema='{"type": "null"}'),
        pb.GuidedParams(grammar='{"type": "null"}'),
    ]


def test_generate_can_send_a_chat_and_read_stdin(
    address: str, servicer: fake_server.FakeServicer, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("sys.stdin", io.StringIO("from a pipe"))
    assert main(["generate", "-", "--system", "Be brief.", "--server", address]) == 0
    messages = [(m.role, m.content) for m in servicer.requests[0].chat.messages]
    assert messages == [("system", "Be brief."), ("user", "from a pipe")]


def test_generate_prints_one_json_object(address: str, out: pytest.CaptureFixture[str]) -> None:
    assert main(["generate", "one two", "--json", "--server", address]) == 0
    record = json.loads(out.readouterr().out)
    assert record["outputs"][0]["text"] == "one two"
    assert record["outputs"][0]["finish_reason"] == "length"
    assert record["usage"]["num_output_tokens"] == 2
    assert record["prompt_digest"] == "01" * 16


def test_a_refused_request_is_one_line_and_status_1(out: pytest.CaptureFixture[str]) -> None:
    with fake_server.running(fake_server.FakeServicer(refuse)) as address:
        assert main(["generate", "x", "--server", address]) == 1
    assert out.readouterr() == ("", "nanoserve: bad request; sampling.top_p: is 3\n")


def test_without_a_server_it_says_how_to_start_one(tmp_path: Path, out: pytest.CaptureFixture[str]) -> None:
    for command in (["generate", "x"], ["chat"], ["load"]):
        assert main([*command, "--server", f"unix:{tmp_path}/s"]) == 1
        error = out.readouterr().err
        assert error == f"nanoserve: nothing listens at unix:{tmp_path}/s: start one with `nanoserve serve`\n"
    assert main(["generate", "x", "--server", "nobody.invalid:50051"]) == 1
    assert "start one" not in out.readouterr().err


@pytest.mark.parametrize(
    ("command", "name"),
    [
        (["generate"], "PROMPT"),
        (["generate", "x", "--bogus"], "--bogus"),
        (["generate", "x", "--top-k", "many"], "--top-k"),
        (["generate", "x", "--logprobs", "2"], "--logprobs"),
        (["generate", "x", "--regex", "a", "--choice", "b"], "--choice"),
        (["generate", "x", "--json-schema", "/no/such/file"], "--json-schema"),
        (["serve", "--log-level", "loud"], "--log-level"),
        (["serve", "--bogus=1"], "--bogus=1"),
        (["serve", "--block", "8"], "--block"),
        (["load", "--server", "nowhere"], "--server: 'nowhere' is neither host:port nor unix:PATH"),
        (["serve", "--listen", "nowhere"], "--listen: 'nowhere' is neither host:port nor unix:PATH"),
        (["bench"], "bench"),
        ([], "COMMAND"),
    ],
)
def test_wrong_usage_is_one_line_that_names_it_and_status_2(
    command: list[str], name: str, out: pytest.CaptureFixture[str]
) -> None:
    assert main(command) == 2
    told, error = out.readouterr()
    assert told == ""
    assert error.count("\n") == 1
    assert name in error


def test_load_prints_figures(address: str, out: pytest.CaptureFixture[str]) -> None:
    assert main(["load", "--server", address]) == 0
    figures = dict(line.split() for line in out.readouterr().out.splitlines())
    assert (figures["num_held_blocks"], figures["round_trip_ms"]) == ("5", "2.500")
    assert main(["load", "--json", "--server", address]) == 0
    assert json.loads(out.readouterr().out)["step_stats"]["device_ms"] == 1.5


def chat(lines: str, address: str, monkeypatch: pytest.MonkeyPatch, *flags: str) -> int:
    monkeypatch.setattr("sys.stdin", io.StringIO(lines))
    return main(["chat", "--server", address, *flags])


def test_chat_keeps_the_conversation_until_told_otherwise(
    address: str,
    servicer: fake_server.FakeServicer,
    monkeypatch: pytest.MonkeyPatch,
    out: pytest.CaptureFixture[str],
) -> None:
    lines = "one\n\n/what\n/system Be brief.\ntwo\n/reset\nthree\n/exit\nnever\n"
    assert chat(lines, address, monkeypatch) == 0
    told, error = out.readouterr()
    assert told == "one\ntwo\nthree\n"
    assert "\n/what: no such command" in error
    sent = [[(m.role, m.content) for m in request.chat.messages] for request in servicer.requests]
    assert sent == [
        [("user", "one")],
        [("system", "Be brief."), ("user", "one"), ("assistant", "one"), ("user", "two")],
        [("system", "Be brief."), ("user", "three")],
    ]


def test_chat_survives_a_refused_message(
    monkeypatch: pytest.MonkeyPatch, out: pytest.CaptureFixture[str]
) -> None:
    servicer = fake_server.FakeServicer(refuse)
    with fake_server.running(servicer) as address:
        assert chat("one\ntwo\n", address, monkeypatch, "--system", "s") == 0
    assert out.readouterr().err.count("sampling.top_p: is 3") == 2
    assert [m.content for m in servicer.requests[1].chat.messages] == [
        "s",
        "two",
    ]  # the refused turn is forgotten


def test_text_that_is_no_unicode_is_named_and_ends_no_chat(
    address: str, monkeypatch: pytest.MonkeyPatch, out: pytest.CaptureFixture[str]
) -> None:
    assert main(["generate", "ab\udcff", "--server", address]) == 1
    assert out.readouterr().err == "nanoserve: text: is not valid Unicode at character 2\n"
    assert chat("\udcff\ntwo\n", address, monkeypatch) == 0
    told, error = out.readouterr()
    assert told == "two\n"
    assert "messages[0]: is not valid Unicode at character 0" in error


def test_a_second_ctrl_c_ends_what_the_first_has_not() -> None:
    servicer = fake_server.FakeServicer(fake_server.endless)
    with fake_server.running(servicer) as address:
        for pause in (0.0, 0.0005, 0.002, 0.01):
            command = [*NANOSERVE, "generate", "x", "--server", address]
            with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE) as process:
                assert process.stdout is not None
                assert process.stdout.read(4) == b"one "
                process.send_signal(signal.SIGINT)
                time.sleep(pause)
                process.send_signal(signal.SIGINT)
                _, error = process.communicate(timeout=20)
                assert process.returncode in (130, -signal.SIGINT)
                assert error == b""


def test_ctrl_c_stops_the_answer_and_not_the_chat(tmp_path: Path) -> None:
    servicer = fake_server.FakeServicer(fake_server.endless)
    with fake_server.running(servicer) as address:
        process = subprocess.Popen(
            [*NANOSERVE, "chat", "--server", address],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
        with process:
            assert process.stdin is not None
            assert process.stdout is not None
            process.stdin.write("count\n")
            process.stdin.flush()
            assert process.stdout.read(4) == "one "
            process.send_signal(signal.SIGINT)
            assert servicer.ended.wait(20)
            servicer.script = fake_server.echo
            process.stdin.write("again\n")
            process.stdin.close()
            assert process.stdout.read() == "\nagain\n"
            assert process.wait(20) == 0
    assert [m.content for m in servicer.requests[1].chat.messages] == ["count", "one ", "again"]


def test_a_reader_that_leaves_early_gets_no_traceback(tmp_path: Path) -> None:
    with fake_server.running(fake_server.FakeServicer(fake_server.echo)) as address:
        read, write = os.pipe()
        os.close(read)
        done = subprocess.run(
            [*NANOSERVE, "generate", "x", "--server", address],
            stdout=write,
            stderr=subprocess.PIPE,
            timeout=60,
        )
        os.close(write)
    assert (done.returncode, done.stderr) == (1, b"")
