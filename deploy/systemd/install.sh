#!/bin/sh
# Makes qsm-edge, which lies in /opt/qsm-edge already (deploy/wheelhouse), a service of systemd. Run as root.
#   sh install.sh          DESTDIR=...: only put the files below that folder; no user is made, nothing is started
set -eu
here=$(cd "$(dirname "$0")" && pwd)
root=${DESTDIR:-}
command=/opt/qsm-edge/bin/qsm-edge
site=/etc/qsm-edge/site.toml

if [ -z "$root" ]; then
  [ "$(id -u)" -eq 0 ] || { echo "install: run this as root" >&2; exit 2; }
  [ -x "$command" ] || { echo "install: there is no $command; see deploy/wheelhouse" >&2; exit 2; }
  getent passwd qsm-edge >/dev/null || useradd --system --user-group --no-create-home \
    --home-dir /var/lib/qsm-edge --shell /usr/sbin/nologin qsm-edge
fi

mkdir -p "$root/etc/qsm-edge" "$root/etc/systemd/system"
cp "$here/qsm-edge.service" "$root/etc/systemd/system/qsm-edge.service"
chmod 0644 "$root/etc/systemd/system/qsm-edge.service"
# A configuration that is there is never touched.
[ -e "$root$site" ] || cp "$here/../site.example.toml" "$root$site"
chmod 0750 "$root/etc/qsm-edge"
chmod 0640 "$root$site"

if [ -z "$root" ]; then
  chown root:qsm-edge /etc/qsm-edge "$site"
  systemctl daemon-reload
  if "$command" serve --config "$site" --check; then
    echo "now: systemctl enable --now qsm-edge"
  else
    echo "install: edit $site, then: $command serve --config $site --check && systemctl enable --now qsm-edge"
  fi
fi
