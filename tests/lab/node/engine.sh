#!/bin/sh
# The node's service manager: engine.sh start|ready|kill|stop|pause|resume. containerd is a
# service of its own, as on a machine with systemd.
set -eu
SOCKET=/run/containerd/containerd.sock

runs() { # PROGRAM: those that have ended and are not yet reaped do not count
    pgrep --exact --runstates R,S,D,T,t "$1" >/dev/null
}

signal() { # SIGNAL
    for program in dockerd containerd; do
        pkill "-$1" --exact "$program" || :
    done
}

gone() {
    while runs dockerd || runs containerd; do sleep 0.02; done
}

start() {
    exec 9>/run/engine.lock
    flock 9
    if ! runs containerd; then
        rm -f "$SOCKET"
        setsid containerd </dev/null >>/var/log/containerd.log 2>&1 9>&- &
        until [ -S "$SOCKET" ]; do
            sleep 0.02
            runs containerd || exit 1
        done
    fi
    if ! runs dockerd; then
        rm -f /run/docker.pid
        # The outer network's MTU holds for the inner one.
        setsid dockerd --containerd "$SOCKET" --mtu "$(cat /sys/class/net/eth0/mtu)" \
            </dev/null >>/var/log/dockerd.log 2>&1 9>&- &
    fi
    flock --unlock 9
}

ready() {
    until docker version >/dev/null 2>&1; do sleep 0.05; done
}

case $1 in
start) start ;;
ready) ready ;;
kill)
    signal KILL
    gone
    ;;
stop)
    signal CONT
    signal TERM
    gone
    ;;
pause) signal STOP ;;
resume) signal CONT ;;
esac
