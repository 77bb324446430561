#!/bin/sh
# Says what this machine has for a server of models, in parts. Reads only, needs no root, and what
# is not there is left out; nothing waits for longer than some seconds.
# facts.sh DOCKER MODEL NAME: the docker command; the folder of the model, or nothing; a name of
# this machine in the data network to look up, or nothing.
set -u
docker=$1
model=$2
name=${3:-}
LC_ALL=C
export LC_ALL
part() { printf '\n@@ %s\n' "$1"; }

# Not timeout around the command itself: it cannot end what is root's, or what waits for a device.
bounded() { # SECONDS COMMAND...
    limit=$1
    shift
    { "$@" 2>&1 & } | timeout "$limit" cat || printf '\n@late\n'
}

first() { # FILE: its first line
    [ ! -r "$1" ] || { read -r line <"$1" && printf '%s' "$line"; } 2>/dev/null
}

part machine
printf 'kernel=%s\narch=%s\nuser=%s\ngroups=%s\n' "$(uname -r)" "$(uname -m)" "$(id -un)" "$(id -Gn)"
printf 'host=%s\nboot=%s\n' "$(uname -n)" "$(first /proc/sys/kernel/random/boot_id)"
printf 'os=%s\n' "$(sed -n 's/^PRETTY_NAME="\{0,1\}\([^"]*\)"\{0,1\}$/\1/p' /etc/os-release 2>/dev/null)"
printf 'product=%s\n' "$(first /sys/class/dmi/id/product_name)"
printf 'connection=%s\n' "${SSH_CONNECTION:-}"

part links
for link in /sys/class/net/*; do
    [ ! -d "$link" ] || printf '%s %s %s %s\n' "${link##*/}" \
        "$(cat "$link/speed" 2>/dev/null || echo -1)" "$(first "$link/mtu")" \
        "$(first "$link/operstate")"
done
ip -o addr show 2>/dev/null | sed -n 's/^[0-9]*: *\([^ ]*\) *inet6* \([^ ]*\).*/@ \1 \2/p'

part names
if [ -n "$name" ] && command -v getent >/dev/null 2>&1; then
    bounded 5 getent ahosts "$name" | sed -n 's/ .*//p' | sort -u
fi

part rdma
for port in /sys/class/infiniband/*/ports/*; do
    [ -d "$port" ] || continue
    device=${port%/ports/*}
    net=$(first "$port/gid_attrs/ndevs/0")
    if [ -z "$net" ]; then
        for net in "$device"/device/net/*; do break; done
        [ -e "$net" ] && net=${net##*/} || net=
    fi
    printf '%s|%s|%s|%s|%s|%s\n' "${device##*/}" "${port##*/}" "$(first "$port/state")" \
        "$(first "$port/link_layer")" "$(first "$port/rate")" "$net"
done

part infiniband
for file in /dev/infiniband/*; do
    [ ! -e "$file" ] || printf '%s\n' "${file##*/}"
done

part gpus
[ ! -r /proc/driver/nvidia/version ] || sed -n 's/^NVRM/@module &/p' /proc/driver/nvidia/version
if command -v nvidia-smi >/dev/null 2>&1; then
    echo @smi
    said=$(bounded 15 nvidia-smi --query-gpu=index,name,driver_version,memory.total,uuid --format=csv,noheader,nounits)
    printf '%s\n' "$said"
    case $said in
    *@late*) said= ;;
    *)
        bounded 10 nvidia-smi --query-compute-apps=pid,process_name --format=csv,noheader |
            sed -n 's/^\([0-9][0-9]*, \)/@process \1/p'
        said=$(bounded 10 nvidia-smi --version)
        ;;
    esac
    case $said in
    '' | *@late* | *'CUDA Version'*) ;;
    *) said=$(bounded 10 nvidia-smi) ;;
    esac
    printf '%s\n' "$said" | sed -n 's/.*\(CUDA Version *: *[0-9.]*\).*/@\1/p'
fi

part docker
# shellcheck disable=SC2086 # it may be several words
info=$(bounded 10 $docker info --format '{{json .}}')
printf '%s\n' "$info"
root=$(printf '%s\n' "$info" | sed -n 's/.*"DockerRootDir":"\([^"]*\)".*/@root \1/p')
root=${root#@root }

part hooks
for hook in nvidia-container-runtime-hook nvidia-container-runtime nvidia-ctk nvidia-cdi-hook; do
    # dockerd has the system's own PATH, which may be longer than that of a user.
    PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin:$PATH command -v "$hook"
done

part cdi
for file in /etc/cdi/* /var/run/cdi/*; do
    [ -r "$file" ] || continue
    kind=$(sed -n 's/^ *"\{0,1\}kind"\{0,1\} *: *"\{0,1\}\([^",]*\).*/\1/p' "$file" | head -n 1)
    # The driver's version is in the names of its libraries.
    library=$(grep -o 'libcuda\.so\.[0-9][0-9.]*[0-9]' "$file" | grep -v 'so\.1$' | head -n 1)
    printf '%s|%s|%s\n' "$file" "$kind" "${library#libcuda.so.}"
done

part limits
# POSIX has no -l; all of dash, bash, busybox and ksh do.
# shellcheck disable=SC3045
printf 'memlock=%s\n' "$(ulimit -l 2>/dev/null)"
if [ -d /run/systemd/system ]; then
    printf 'docker=%s\n' "$(bounded 5 systemctl show docker --property LimitMEMLOCK --value)"
fi

part memory
grep -E '^(MemTotal|MemFree|MemAvailable|SwapTotal|SwapFree):' /proc/meminfo

part disk
disk() { # WHAT FOLDER
    [ ! -e "$2" ] || printf '%s %s\n' "$1" "$(bounded 5 df -Pk "$2" | tail -n 1)"
}
[ -z "$root" ] || disk docker "$root"
[ ! -d /var/lib/containerd ] || disk containerd /var/lib/containerd
[ -z "$model" ] || disk model "$model"

part held
if command -v dpkg >/dev/null 2>&1; then
    bounded 10 dpkg --get-selections | sed -n 's/[[:space:]]*hold$//p'
fi

part ports
# 0A: listening.
cat /proc/net/tcp /proc/net/tcp6 2>/dev/null | sed -n 's/^ *[0-9]*: \([0-9A-F]*:[0-9A-F]*\) [^ ]* 0A .*/\1/p'

part model
if [ -n "$model" ]; then
    if [ ! -e "$model" ]; then
        echo @missing
    elif [ ! -d "$model" ] || ! cd "$model" 2>/dev/null || ! [ -r . ]; then
        echo @closed
    else
        echo @folder
        # Links lead to where a download cache keeps the files; its notes are not of the model.
        bounded 30 find -L . -name '.?*' -prune -o -type f -exec stat -L -c '%s %n' '{}' + | head -n 20000
        for file in ./*.safetensors.index.json; do
            [ ! -r "$file" ] || {
                echo "@index $file"
                grep -o '"[^"]*\.safetensors"' "$file" | sort -u
            }
        done
    fi
fi

part clock
if [ -d /run/systemd/system ]; then
    printf 'synced=%s\n' "$(bounded 5 timedatectl show --property NTPSynchronized --value)"
fi
# Last: the other side reads its own clock when this comes.
printf 'now=%s\n' "$(date +%s.%N)"
