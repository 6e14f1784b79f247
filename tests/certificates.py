"""Certificates for tests, made by the openssl command."""

import shutil
import subprocess
from dataclasses import dataclass
from pathlib import Path

import pytest

_NAMES = "subjectAltName=DNS:localhost,IP:127.0.0.1"
_KEY = ("-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:prime256v1", "-nodes")


@dataclass(frozen=True, slots=True)
class Issued:
    """Paths of a certificate and its key."""

    cert: str
    key: str


class Authority:
    """Signs certificates for this machine's names."""

    def __init__(self, folder: Path) -> None:
        folder.mkdir(parents=True)
        self._folder = folder
        self.ca, self._key = str(folder / "ca.pem"), str(folder / "ca.key")
        openssl("req", "-x509", *_KEY, "-keyout", self._key, "-out", self.ca, "-days", "2", "-subj", "/CN=ca")
        self.good = self.issue("good", days=2)
        self.expired = self.issue("expired", days=-1)

    def issue(self, name: str, *, days: int) -> Issued:
        """A certificate that is good for so many days."""
        base = self._folder / name
        request, cert, key = (str(base.with_suffix(suffix)) for suffix in (".csr", ".pem", ".key"))
        names = self._folder / "names"
        names.write_text(_NAMES)
        openssl("req", *_KEY, "-keyout", key, "-out", request, "-subj", f"/CN={name}")
        signing = ("-CA", self.ca, "-CAkey", self._key, "-CAcreateserial", "-extfile", str(names))
        openssl("x509", "-req", "-in", request, *signing, "-days", str(days), "-out", cert)
        return Issued(cert, key)


@dataclass(frozen=True, slots=True)
class Authorities:
    """Two that know nothing of each other."""

    ours: Authority
    other: Authority


def make_authorities(folder: Path) -> Authorities:
    """Both; skips the test where there is no openssl."""
    if shutil.which("openssl") is None:
        pytest.skip("there is no openssl command to make certificates with")
    return Authorities(Authority(folder / "ours"), Authority(folder / "other"))


def openssl(*words: str) -> None:
    """Runs the command."""
    subprocess.run(["openssl", *words], check=True, capture_output=True, timeout=60)
