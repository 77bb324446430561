#!/bin/sh
# Makes the other nodes known to this one. One line of standard input for each: its name, its
# address in this network, the address and port that the client knows it by, its host key.
set -eu
while read -r name inside address port key; do
    echo "$inside $name" >>/etc/hosts
    echo "$name,$inside,[$address]:$port $key" >>/etc/ssh/ssh_known_hosts
    # The client's address of a node holds here too.
    setsid socat "TCP-LISTEN:$port,bind=$address,fork,reuseaddr" "TCP:$inside:22" \
        </dev/null >>/var/log/socat.log 2>&1 &
done
