#!/bin/sh
# A hook of mmdebstrap: asks apt, set up for another suite, architecture or repository than this
# machine's. Each file of $SPARKIMAGE_APT named for a verb holds that verb's words, one a line.
set -eu

export APT_CONFIG="$MMDEBSTRAP_APT_CONFIG"
cd "$SPARKIMAGE_APT"

ask() { # FILE ARGUMENT...
    file=$1
    shift
    xargs -d '\n' -a "$file" apt-get -qq -o Acquire::ForceHash=SHA256 \
        -o APT::Sandbox::User=root "$@"
}

# What an installation of all these would fetch.
for file in install-*; do
    if [ -e "$file" ]; then ask "$file" --print-uris install >"uris-$file"; fi
done
# Where these alone would come from.
if [ -e find ]; then ask find --print-uris download >uris-find; fi
if [ -e fetch ]; then ask fetch download; fi
