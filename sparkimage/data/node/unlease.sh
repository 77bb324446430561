#!/bin/sh
# unlease.sh DOCKER: makes containerd let go of layers that no image has any more.
# Pulls that were cut short hold what came for eight hours; a prune ends that, here one that no image
# is for. And where Docker cannot mount a container's first snapshot, the lease of that container
# stays for ever, with the layers below it.
# https://github.com/moby/moby/tree/v28.5.2/daemon/containerd (image_prune.go, image_snapshot.go)
docker=$1
case $docker in *' '*) sudo=${docker% *} ;; *) sudo= ;; esac
$docker image prune --force --filter label=dev.sparkimage.none >/dev/null
at=$($docker info --format '{{with .Containerd}}{{.Address}}{{end}}' 2>/dev/null) || at=
containerd() { $sudo ctr ${at:+--address "$at"} --namespace moby "$@"; }
containerd snapshots ls | while read -r key _; do
    id=${key%-init-key}
    [ "$id" != "$key" ] || continue
    # Docker has committed the first snapshot of each container that it knows.
    $docker container inspect "$id" >/dev/null 2>&1 || containerd leases rm --sync "$id"
done
