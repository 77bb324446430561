#!/bin/sh
# Says what this node is and has, in parts, and then stays until its standard input ends: the
# lock, where it was asked for, is held exactly as long. Reads only, needs no root; what is not
# there is left out. What the engine says the other side asks it itself, when it is told to; its
# answer is a line: the kind of store, a bar, the engine's root folder.
# snapshot.sh DOCKER PARTS LOCK OWNER ADDRESS MODEL: the docker command; any of the words images,
# containers, machine; `lock` or nothing; who asks for it; this node's address in the data network,
# maybe a name, or nothing; the folder of the model, or nothing.
set -u
docker=$1
parts=" $2 "
lock=$3
owner=$4
address=$5
model=$6
LC_ALL=C
export LC_ALL
part() { printf '\n@@ %s\n' "$1"; }
wanted() { case $parts in *" $1 "*) ;; *) return 1 ;; esac }

# Not timeout around the command itself: it cannot end what is root's, or what waits for a device.
bounded() { # SECONDS COMMAND...
    limit=$1
    shift
    { "$@" 2>&1 & } | timeout "$limit" cat || printf '\n@late\n'
}

first() { # FILE: its first line
    [ ! -r "$1" ] || { read -r line <"$1" && printf '%s' "$line"; } 2>/dev/null
}

disk() { # WHAT FOLDER COMMAND...: the command is df
    what=$1
    folder=$2
    shift 2
    [ ! -e "$folder" ] || printf '%s %s\n' "$what" "$("$@" -Pk "$folder" | tail -n 1)"
}

# A safetensors file begins with the length of its header, which says where the last tensor ends:
# https://github.com/huggingface/safetensors#format
# shellcheck disable=SC2016 # for another shell
lengths='
for file in ./*.safetensors; do
    header=$(od -A n -t u8 -N 8 "$file" 2>/dev/null | tr -d " ")
    case $header in
    "" | ?????????*) continue ;;
    esac
    end=$(tail -c +9 "$file" | head -c "$header" |
        grep -o "\"data_offsets\" *: *\[[0-9 ]*,[0-9 ]*" | sed "s/.*[, ]//" | sort -n | tail -n 1)
    [ -z "$end" ] || printf "@length %s %s\n" "$((8 + header + end))" "$file"
done'

# By the engine's socket, where the docker command here would surely use this one; else by the
# command.
way="command"
[ "$docker${DOCKER_HOST:-}${DOCKER_CONTEXT:-}" != docker ] || [ ! -w /var/run/docker.sock ] ||
    ! command -v docker >/dev/null 2>&1 ||
    grep -qs '"currentContext"' "${DOCKER_CONFIG:-$HOME/.docker}/config.json" || way=socket
printf '@@ ask %s %s\n' "$way" "$2"

part machine
printf 'arch=%s\nuser=%s\ngroups=%s\n' "$(uname -m)" "$(id -un)" "$(id -Gn)"
printf 'connection=%s\n' "${SSH_CONNECTION:-}"
if wanted machine; then
    printf 'kernel=%s\nhost=%s\n' "$(uname -r)" "$(uname -n)"
    printf 'boot=%s\n' "$(first /proc/sys/kernel/random/boot_id)"
    printf 'os=%s\n' "$(sed -n 's/^PRETTY_NAME="\{0,1\}\([^"]*\)"\{0,1\}$/\1/p' /etc/os-release 2>/dev/null)"
    printf 'product=%s\n' "$(first /sys/class/dmi/id/product_name)"
fi

part links
for link in /sys/class/net/*; do
    [ -d "$link" ] || continue
    # One that is down, or has no speed, cannot be read.
    { read -r speed <"$link/speed"; } 2>/dev/null || speed=-1
    { read -r mtu <"$link/mtu"; } 2>/dev/null || mtu=
    { read -r state <"$link/operstate"; } 2>/dev/null || state=
    printf '%s %s %s %s\n' "${link##*/}" "$speed" "$mtu" "$state"
done
ip -o addr show 2>/dev/null | sed -n 's/^[0-9]*: *\([^ ]*\) *inet6* \([^ ]*\).*/@ \1 \2/p'

answer=$(timeout 60 head -n 1)
store=${answer%%|*}
root=${answer#*|}

part disk
[ -z "$root" ] || disk docker "$root" df
[ ! -d /var/lib/containerd ] || disk containerd /var/lib/containerd df
# It may lie on another machine's disk.
[ -z "$model" ] || disk model "$model" bounded 5 df

if wanted images && [ -n "$root" ]; then
    part content
    case $store in
    containerd)
        # As root where docker is called so; nobody else may ask.
        case $docker in
        sudo*) as='sudo -n' ;;
        *) as= ;;
        esac
        if command -v ctr >/dev/null 2>&1; then
            for socket in /run/containerd/containerd.sock /run/docker/containerd/containerd.sock; do
                if $as test -S "$socket" 2>/dev/null; then
                    $as ctr --address "$socket" --namespace moby content ls --quiet 2>/dev/null &&
                        echo @whole
                    # What has come of blobs in part: layer-sha256:…, and more.
                    $as ctr --address "$socket" --namespace moby content active 2>/dev/null
                fi
            done
        fi
        ;;
    esac

    part receipts
    state=${XDG_STATE_HOME:-$HOME/.local/state}/sparkimage/receipts
    cat "$state"/*.json 2>/dev/null
fi

if wanted containers && [ -n "$root" ]; then
    part cache
    printf '%s\n' "${XDG_CACHE_HOME:-$HOME/.cache}"
fi

if wanted machine; then
    part names
    if [ -n "$address" ] && command -v getent >/dev/null 2>&1; then
        bounded 5 getent ahosts "$address" | sed -n 's/ .*//p' | sort -u
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
        [ ! -d "$port/gids" ] || echo "@gids ${device##*/}|${port##*/}"
        # A table has some hundred entries, most of them empty: those have no type.
        for file in "$port"/gids/*; do
            { read -r kind <"$port/gid_attrs/types/${file##*/}" && read -r gid <"$file"; } 2>/dev/null ||
                continue
            printf '@gid %s|%s|%s|%s|%s\n' "${device##*/}" "${port##*/}" "${file##*/}" "$kind" "$gid"
        done
    done

    part routes
    ip -4 route show 2>/dev/null | head -n 200

    part nccl
    # The programs of this user read these where the environment says nothing else.
    for file in "${NCCL_CONF_FILE:-$HOME/.nccl.conf}" /etc/nccl.conf; do
        [ -r "$file" ] || continue
        printf '@file %s\n' "$file"
        grep '^NCCL_[A-Z0-9_]*=' "$file" | head -n 100
    done

    part infiniband
    for file in /dev/infiniband/*; do
        [ ! -e "$file" ] || printf '%s\n' "${file##*/}"
    done

    part gpus
    [ ! -r /proc/driver/nvidia/version ] ||
        sed -n 's/^NVRM/@module &/p' /proc/driver/nvidia/version
    if command -v nvidia-smi >/dev/null 2>&1; then
        echo @smi
        said=$(bounded 15 nvidia-smi --query-gpu=index,name,driver_version,memory.total,uuid,memory.free --format=csv,noheader,nounits)
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

    part hooks
    for hook in nvidia-container-runtime-hook nvidia-container-runtime nvidia-ctk nvidia-cdi-hook; do
        # dockerd has the system's own PATH, which may be longer than that of a user.
        PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin:$PATH command -v "$hook"
    done

    part cdi
    for file in /etc/cdi/* /var/run/cdi/*; do
        [ -r "$file" ] || continue
        # YAML, or JSON in one line or in many.
        kind=$(sed -n -e 's/.*"kind" *: *"\([^"]*\)".*/\1/p' -e 's/^kind *: *\([^ ]*\).*/\1/p' "$file" |
            tr -d \"\' | head -n 1)
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
    grep -E '^(MemTotal|MemFree|MemAvailable|SwapTotal|SwapFree|CmaTotal|CmaFree):' /proc/meminfo

    part kernel
    # What the driver said since the boot. Often only root, or a member of adm, may read it.
    for log in 'journalctl --dmesg --boot --no-pager --quiet' dmesg; do
        said=$(bounded 10 sh -c "$log 2>/dev/null" |
            sed -n '/NVRM: Xid/p; /NVRM.*fallen off/p; /NVRM.*NV_ERR_NO_MEMORY/p; $s/.*/@read/p' |
            tail -n 50)
        case $said in
        *@late*) break ;;
        *@read*)
            printf '%s\n' "$said"
            break
            ;;
        esac
    done

    part held
    if command -v dpkg >/dev/null 2>&1; then
        bounded 10 dpkg --get-selections | sed -n 's/[[:space:]]*hold$//p'
    fi

    part ports
    # 0A: listening.
    cat /proc/net/tcp /proc/net/tcp6 2>/dev/null |
        sed -n 's/^ *[0-9]*: \([0-9A-F]*:[0-9A-F]*\) [^ ]* 0A .*/\1/p'

    part model
    if [ -n "$model" ]; then
        if [ ! -e "$model" ]; then
            echo @missing
        elif [ ! -d "$model" ] || ! cd "$model" 2>/dev/null || ! [ -r . ]; then
            echo @closed
        else
            echo @folder
            # Links lead to where a download cache keeps the files; its notes are not of the model.
            bounded 30 find -L . -name '.?*' -prune -o -type f -exec stat -L -c '%s %n' '{}' + |
                head -n 20000
            for file in ./*.safetensors.index.json; do
                [ ! -r "$file" ] || {
                    echo "@index $file"
                    grep -o '"[^"]*\.safetensors"' "$file" | sort -u
                    grep -o '"total_size" *: *[0-9]*' "$file" | head -n 1 | sed 's/.*[ :]/@total /'
                }
            done
            # A Git LFS pointer has some 130 bytes: https://github.com/git-lfs/git-lfs/blob/main/docs/spec.md
            bounded 10 find -L . -maxdepth 1 -type f -size -2 -exec grep -l '^version https://git-lfs' '{}' + |
                sed -n 's/^\.\//@pointer /p'
            bounded 20 sh -c "$lengths" | grep '^@length '
        fi
    fi
fi

part lock
if [ "$lock" = lock ]; then
    folder=/run/lock
    { [ -d "$folder" ] && [ -w "$folder" ]; } || folder=/tmp
    file=$folder/sparkimage.lock
    [ -e "$file" ] || (umask 0 && : >"$file") 2>/dev/null
    if ! command -v flock >/dev/null 2>&1; then
        echo 'none: there is no flock on this node'
    elif ! exec 9<"$file"; then
        echo "none: $file cannot be read"
    elif flock --nonblock 9; then
        # A file of one's own: a shared folder may refuse to write that of another user.
        printf '%s\n' "$owner" >"$file.$(id -u)" 2>/dev/null
        echo held
    else
        # shellcheck disable=SC2012 # the names are ours
        holder=$(ls -t "$file".* 2>/dev/null | head -n 1)
        printf 'busy: %s\n' "$([ -z "$holder" ] || cat "$holder")"
    fi
fi

part clock
if wanted machine && [ -d /run/systemd/system ]; then
    printf 'synced=%s\n' "$(bounded 5 timedatectl show --property NTPSynchronized --value)"
fi
# Last: the other side reads its own clock when this comes.
printf 'now=%s\n' "$(date +%s.%N)"
part end
# The other side sends a dot every few seconds. Without one it is gone, even where no
# connection was ever closed.
while [ "$(timeout 60 head -c 1 9<&-)" = . ]; do :; done
