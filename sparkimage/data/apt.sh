#!/bin/sh
# A hook of mmdebstrap: asks apt, set up for another suite, architecture or repository than this
# machine's. Each file of $SPARKIMAGE_APT named for a verb holds that verb's words, one a line;
# `status` is of what is installed already.
set -eu

export APT_CONFIG="$MMDEBSTRAP_APT_CONFIG"
cd "$SPARKIMAGE_APT"
if [ -e status ]; then cp status "$1/var/lib/dpkg/status"; fi

ask() { # FILE ARGUMENT...
    file=$1
    shift
    xargs -d '\n' -a "$file" apt-get -qq -o Acquire::ForceHash=SHA256 \
        -o APT::Sandbox::User=root "$@"
}

# With the flags of the step that installs them.
install() { # FILE ARGUMENT...
    ask "$@" --allow-downgrades --allow-change-held-packages install
}

# What an installation of all these would fetch, and what it would do to what is there.
for file in install-*; do
    if [ -e "$file" ]; then
        # Without -qq it lists the dependencies that it cannot satisfy.
        install "$file" --print-uris >"uris-$file" || install "$file" -o quiet=1 --simulate >&2
        if [ -e status ]; then install "$file" --simulate >"simulated-$file"; fi
    fi
done
# Where these alone would come from.
if [ -e find ]; then ask find --print-uris download >uris-find; fi
if [ -e fetch ]; then ask fetch download; fi
