#!/bin/sh
# Loads what comes on standard input under a staging name, or takes what is here under it, and
# shows that it can run.
# stage.sh DOCKER NAME FROM EARLIER PROVE: FROM is `-` for standard input, a registry's
# NAME@DIGEST to pull, or the id of an image that is here;
# EARLIER is a staging name that is not needed any more, or nothing; PROVE is `prove` or nothing.
set -u
docker=$1
name=$2
from=$3
earlier=$4
prove=$5
if [ "$from" = - ]; then
    said=$($docker load 2>&1)
    code=$?
    printf '%s\n' "$said"
    # containerd's store says this and then ends as if all were well.
    case $code$said in 0*'Error unpacking'*) code=92 ;; esac
    if [ "$code" != 0 ]; then
        # It has named the image all the same, which later looks as if it were whole.
        $docker rmi "$name" >/dev/null 2>&1
        [ "$code" = 92 ] || code=91
        exit "$code"
    fi
else
    case $from in
    *@sha256:*) $docker pull --quiet "$from" || exit 94 ;;
    esac
    $docker tag "$from" "$name" || exit 93
    case $from in
    *@sha256:*) $docker rmi "$from" >/dev/null 2>&1 ;;
    esac
fi
[ -z "$earlier" ] || $docker rmi "$earlier" >/dev/null 2>&1
[ "$prove" = prove ] || exit 0
printf '@@ image '
$docker image inspect --format '[{{json .Id}},"{{.Os}}/{{.Architecture}}",{{json .RootFS.Layers}}]' "$name" || exit 97
made=$($docker create --label dev.sparkimage.proof=1 --network none --entrypoint /proof "$name") || exit 95
$docker rm "$made" >/dev/null || exit 96
printf '@@ created\n'
