#!/bin/sh
# What compose runs before the services: nanoserve-prepare MODEL makes the keys of the link between them, unless they are
# there, and fetches the model, if it is the hub's: the executor's network does not reach the hub.
set -eu
umask 077
link=/run/nanoserve/link

if [ ! -s "$link/secret" ]; then
  # The certificate is its own root: the scheduler trusts this one alone.
  openssl req -x509 -newkey ec -pkeyopt ec_paramgen_curve:prime256v1 -nodes -days 3650 -subj /CN=executor \
    -addext 'subjectAltName=DNS:executor,DNS:localhost,IP:127.0.0.1' \
    -keyout "$link/key.pem" -out "$link/cert.pem" 2>/dev/null
  openssl rand -hex 32 >"$link/secret.new"
  mv "$link/secret.new" "$link/secret" # last: it says that all are there
fi
exec python -c '
import sys
from nanoserve.checkpoint import CheckpointError, find_checkpoint
try:
    print(find_checkpoint(sys.argv[1], weights=True))
except CheckpointError as error:
    sys.exit(f"nanoserve-prepare: error: {error}")
' "$1"
