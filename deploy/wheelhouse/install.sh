#!/bin/sh
# Installs qsm-edge from the wheels beside this script into a virtual environment of its own; no network is used.
#   sh install.sh [FOLDER]        FOLDER: where (default /opt/qsm-edge). PYTHON=...: which Python (default python3)
set -eu
house=$(cd "$(dirname "$0")" && pwd)
target=${1:-/opt/qsm-edge}
python=${PYTHON:-python3}

[ -f "$house/requirements.txt" ] || { echo "install: there is no requirements.txt beside this script" >&2; exit 2; }
"$python" -c 'import sys; sys.exit(sys.version_info < (3, 11))' || {
  echo "install: $python is older than 3.11; say PYTHON=..." >&2; exit 2; }
[ ! -e "$target" ] || [ -f "$target/pyvenv.cfg" ] || {
  echo "install: $target exists and is no virtual environment" >&2; exit 2; }

"$python" -m venv "$target"
# Settings of this machine for pip must not add a source; every byte is one that requirements.txt names.
PIP_CONFIG_FILE=/dev/null "$target/bin/python" -I -m pip --isolated --disable-pip-version-check install --quiet \
  --no-index --require-hashes --only-binary :all: --find-links "$house" -r "$house/requirements.txt"
"$target/bin/python" -I -m pip --isolated --disable-pip-version-check check
"$target/bin/qsm-edge" --version
