#!/bin/sh
# The node's service manager: engine.sh start|ready|kill|stop|pause|resume. containerd is a
# service of its own, as on a machine with systemd.
set -eu
SOCKET=/run/containerd/containerd.sock

runs() { # PROGRAM: those that have ended and are not yet reaped do not count
    pgrep --exact --runstates R,S,D,T,t "$1" >/dev/null
}

signal() { # SIGNAL PROGRAM...
    name=$1
    shift
    for program; do pkill "-$name" --exact "$program" || :; done
}

gone() { # PROGRAM...
    for program; do
        while runs "$program"; do sleep 0.02; done
    done
}

start() {
    exec 9>/run/engine.lock
    flock 9
    if ! runs containerd; then
        rm -f "$SOCKET"
        setsid containerd </dev/null >>/var/log/containerd.log 2>&1 9>&- &
        tries=15000
        until [ -S "$SOCKET" ]; do
            sleep 0.02
            tries=$((tries - 1))
            [ "$tries" -gt 0 ]
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
    # Callers have a deadline.
    until docker version >/dev/null 2>&1; do sleep 0.05; done
}

case $1 in
start) start ;;
ready) ready ;;
kill)
    signal KILL dockerd containerd
    gone dockerd containerd
    ;;
stop)
    signal CONT dockerd containerd
    for service in dockerd containerd; do
        signal TERM "$service"
        gone "$service"
    done
    ;;
pause) signal STOP dockerd containerd ;;
resume) signal CONT dockerd containerd ;;
esac
