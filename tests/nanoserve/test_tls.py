"""Files of TLS and secrets: what is wrong is told before anything listens, with the flag, and never quoted."""

from pathlib import Path

import pytest
from certificates import Authorities, openssl

from nanoserve.bearer import bearer_token, read_secret
from nanoserve.exposure import is_local
from nanoserve.tls import ChannelTls, ServerTls


def test_good_files_make_credentials(authorities: Authorities):
    good = authorities.ours.good
    assert ServerTls(good.cert, good.key, authorities.ours.ca).credentials() is not None
    assert ChannelTls(authorities.ours.ca, good.cert, good.key).credentials() is not None
    assert ServerTls().credentials() is None
    assert ChannelTls().credentials() is None


def test_a_file_that_is_no_good_is_told_with_its_flag(authorities: Authorities, tmp_path: Path):
    good, other = authorities.ours.good, authorities.other.good
    garbled = tmp_path / "garbled"
    garbled.write_bytes(b"\xff-----BEGIN CERTIFICATE-----\nnothing\n")
    locked = tmp_path / "locked.key"
    openssl("ec", "-in", good.key, "-out", str(locked), "-aes128", "-passout", "pass:word")
    for cert, key in (
        (good.cert, other.key),
        (good.cert, str(garbled)),
        (str(garbled), good.key),
        (good.key, good.cert),
        (good.cert, str(locked)),
        (good.cert, str(tmp_path)),
        (good.cert, str(tmp_path / "missing")),
    ):
        with pytest.raises(ValueError, match="--tls-key"):
            ServerTls(cert, key).credentials()
    for roots in (str(garbled), good.key, str(tmp_path / "missing")):
        with pytest.raises(ValueError, match="--tls-client-ca"):
            ServerTls(good.cert, good.key, roots).credentials()
        with pytest.raises(ValueError, match="tls_ca"):
            ChannelTls(roots, prefix="tls_").credentials()


@pytest.mark.parametrize(
    "content", [b"", b"\n", b"two words", b"two\nlines", b"\xff\xfe", "schl\u00fcssel".encode()]
)
def test_a_secret_that_cannot_be_one_is_refused_and_not_quoted(content: bytes, tmp_path: Path):
    path = tmp_path / "secret"
    path.write_bytes(content)
    with pytest.raises(ValueError, match="--secret-file") as refusal:
        read_secret("--secret-file", str(path))
    words = content.decode(errors="replace").split()
    assert not any(word in str(refusal.value).replace(str(path), "") for word in words)


def test_white_space_round_a_secret_is_none_of_it(tmp_path: Path):
    (tmp_path / "secret").write_text(" s3cret\n")
    assert read_secret("--secret-file", str(tmp_path / "secret")) == "s3cret"


@pytest.mark.parametrize(
    ("metadata", "token"),
    [
        ([("authorization", "Bearer abc")], "abc"),
        ([("x", "y"), ("authorization", "Bearer abc")], "abc"),
        ([("authorization", "Bearer ")], ""),
        ([("authorization", "bearer abc")], None),
        ([("authorization", "Basic abc")], None),
        ([("authorization", b"Bearer abc")], None),
        ([("authorization", "Bearer a"), ("authorization", "Bearer b")], None),
        ([], None),
        (None, None),
    ],
)
def test_a_call_shows_one_token_or_none(metadata: object, token: str | None):
    assert bearer_token(metadata) == token  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("address", "local"),
    [
        *((address, True) for address in ("unix:/s", "localhost:1", "127.8.0.1:1", "[::1]:1")),
        *(
            (address, False)
            for address in ("0.0.0.0:1", "[::]:1", "10.0.0.1:1", "host:1", "localhost.evil:1")
        ),
    ],
)
def test_only_loopback_and_sockets_are_of_this_machine(address: str, local: bool):
    assert is_local(address) is local
