"""Generates the Python stubs beside the .proto files; `--check` says whether those committed are current."""

import argparse
import subprocess
import sys
import tempfile
from importlib.metadata import version
from pathlib import Path

ROOT = Path(__file__).resolve().parent
PROTOS = sorted(path.relative_to(ROOT) for path in ROOT.glob("nanoserve/**/*.proto"))
SUFFIXES = ("_pb2.py", "_pb2.pyi", "_pb2_grpc.py")
# The newest runtimes refuse stubs of an older major release, and older runtimes refuse newer stubs: this generator's
# stubs load with every release that pyproject.toml allows.
GENERATOR = "1.76.0"


def generate(out: Path) -> None:
    """Writes the stubs of every proto under `out`."""
    flags = [f"--{kind}_out={out}" for kind in ("python", "pyi", "grpc_python")]
    names = [str(path) for path in PROTOS]
    subprocess.run([sys.executable, "-m", "grpc_tools.protoc", f"-I{ROOT}", *flags, *names], check=True)


def stale(fresh: Path) -> list[Path]:
    """Returns the committed stubs that differ from those under `fresh`, or are missing."""
    stubs = [path.with_name(path.stem + suffix) for path in PROTOS for suffix in SUFFIXES]
    return [
        stub
        for stub in stubs
        if not (ROOT / stub).is_file() or (ROOT / stub).read_bytes() != (fresh / stub).read_bytes()
    ]


def main() -> int:
    """Runs the command line."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--check", action="store_true", help="write nothing; exit 1 if stale")
    check = parser.parse_args().check
    if version("grpcio-tools") != GENERATOR:
        print(f"protos: needs grpcio-tools {GENERATOR}, found {version('grpcio-tools')}")
        return 1
    if not check:
        generate(ROOT)
        return 0
    with tempfile.TemporaryDirectory() as folder:
        generate(Path(folder))
        different = stale(Path(folder))
    for stub in different:
        print(f"protos: {stub} is stale: run `make protos`")
    return 1 if different else 0


if __name__ == "__main__":
    sys.exit(main())
