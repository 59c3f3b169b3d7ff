#!/bin/sh
# Debian splits Python's venv module off: install it where we may.
set -eu
if [ "$(id -u)" = 0 ] && command -v apt-get >/dev/null; then
  echo "installing python3-venv" >&2
  apt-get update -qq
  DEBIAN_FRONTEND=noninteractive apt-get install -y -qq --no-install-recommends python3-venv >/dev/null
else
  echo "tfjob: this Python has no venv module; install it (Debian: apt-get install python3-venv), then try again" >&2
  exit 1
fi
