#!/bin/sh
# Runs `vllm bench serve` in a container. Standard input: the server's key on the first line, which may
# be empty, then the prompts. The result goes to standard output, what vLLM says to standard error.
# bench.sh ID OPTION...: of `vllm bench serve`; /tmp/sparkimage-probe-ID/pid is its process.
set -eu
folder=/tmp/sparkimage-probe-$1
shift
mkdir -m 700 "$folder"
trap 'rm -rf "$folder"' EXIT
IFS= read -r key
[ -z "$key" ] || export OPENAI_API_KEY="$key"
cat >"$folder/prompts.jsonl"
vllm bench serve --dataset-path "$folder/prompts.jsonl" \
    --result-dir "$folder" --result-filename result.json "$@" >&2 &
echo $! >"$folder/pid"
wait $!
cat "$folder/result.json"
