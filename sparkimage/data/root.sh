#!/bin/sh
# A hook of mmdebstrap: leaves nothing in a root that depends on the machine which makes it.
# $1 is the root, $ROOT_SOURCES the file that becomes its sources.list.
set -eu

cd "$1"
# Copied from this machine, or written by its apt, whose folders belong to another user where apt's
# own cannot read $1.
rm -rf etc/resolv.conf etc/hostname var/log/* var/cache/* var/lib/apt/lists/*
install -m 644 "$ROOT_SOURCES" etc/apt/sources.list

# In chrootless mode the packages' scripts start this machine's programs, and what some of these
# write depends on their version. ldconfig: ld.so does without its cache until a layer makes one.
rm -f etc/ld.so.cache
# The shells, listed by the root's own script.
if [ -e usr/sbin/update-shells ]; then
    rm -f etc/shells var/lib/shells.state
    sh usr/sbin/update-shells --root "$1"
fi
# PAM's files, by the root's own script from the root's own templates.
if [ -e usr/sbin/pam-auth-update ]; then
    rm -f etc/pam.d/common-* var/lib/pam/*
    sed "s|'/usr/share/pam/|'$1/usr/share/pam/|" usr/sbin/pam-auth-update >tmp/pam-auth-update
    chmod 755 tmp/pam-auth-update
    DEBIAN_FRONTEND=noninteractive tmp/pam-auth-update --root "$1" --package --force
fi
