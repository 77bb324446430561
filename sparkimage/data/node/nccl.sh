#!/bin/sh
# Which libnccl a container loads, started or not: of each file its sha256, and its beginning in base64.
# nccl.sh DOCKER CONTAINER PATH...: the files of its image, which count where its variables name none.
set -uf
docker=$1
container=$2
shift 2
# What vLLM loads, too: https://docs.vllm.ai/en/latest/configuration/env_vars/
named=$($docker container inspect --format '{{range .Config.Env}}{{println .}}{{end}}' "$container" |
    sed -n -e 's/^LD_PRELOAD=//p' -e 's/^VLLM_NCCL_SO_PATH=//p' | tr ' :' '\n' |
    grep '^/\(.*/\)\{0,1\}libnccl[^/]*$' | sort -u)
# shellcheck disable=SC2086 # a word each
[ -z "$named" ] || set -- $named

content() { # PATH: as the container sees it, with its mounts; nothing where it is not there
    # shellcheck disable=SC2086 # it may be two words
    $docker cp --follow-link "$container:$1" - | tar -xO 2>/dev/null
}

for path; do
    printf '@@ %s\n' "$path"
    content "$path" | sha256sum
    content "$path" 2>/dev/null | head -c 65536 | base64 -w 0
    echo
done
