# shellcheck shell=sh
# Sourced by the RUN steps of the layers. What a step leaves behind depends on its inputs alone:
# no bytecode, and no time of the day in a file's date.
set -eu

# The date that every file made by a step gets. Not 0: zip archives begin in 1980.
step_date='2000-01-01 00:00:00 UTC'

# /run is a tmpfs in every step, so the marker and the mount points beside it reach no layer.
: >/run/step-begin

# Installs the hash-pinned wheels of /run/inputs/requirements.txt, natively even where the
# image is of another architecture: uv is a static binary of the machine that builds. They go into
# dist-packages, or into the venv or conda prefix that /run/inputs/into names; a venv is made where
# nothing is. Needs PYTHON_VERSION (X.Y) and PYTHON_PLATFORM (a uv platform name).
install_wheels() {
    dist="/usr/local/lib/python${PYTHON_VERSION}/dist-packages"
    into=
    if [ -s /run/inputs/into ]; then into=$(cat /run/inputs/into); fi
    # The bundle of the machine that builds, where a proxy re-signs TLS; a secret, never a layer.
    if [ -s /run/ca.pem ]; then export SSL_CERT_FILE=/run/ca.pem; fi
    # A mirror of the default index, or an empty line; and the indexes to search before it. A
    # secret, since an address may hold a password. Uv takes an empty variable for none.
    if [ -s /run/index ]; then
        { read -r UV_DEFAULT_INDEX || :; read -r UV_INDEX || :; } </run/index
        export UV_DEFAULT_INDEX UV_INDEX
    fi
    links=
    if [ -d /run/inputs/wheels ]; then links='--find-links /run/inputs/wheels'; fi
    # The cache lies in the same layer as the target, so that wheels are unpacked once and
    # linked, not copied; it is gone when the step ends.
    export UV_CACHE_DIR=/usr/local/.uv-cache UV_NO_INSTALLER_METADATA=1 UV_HTTP_TIMEOUT=120
    site=$dist
    where="--target $dist"
    if [ -n "$into" ]; then
        where="--python $into/bin/python --break-system-packages"
        if [ ! -e "$into/bin/python" ]; then
            /run/uv/uv venv --no-config --no-python-downloads --quiet --python "$PYTHON_VERSION" "$into"
        fi
        site=$("$into/bin/python" -c 'import sysconfig; print(sysconfig.get_path("purelib"))')
    fi
    # shellcheck disable=SC2086 # $links and $where are words, or none
    /run/uv/uv pip install --no-config --no-python-downloads --no-progress --require-hashes --no-deps --only-binary :all: $links \
        --python-platform "$PYTHON_PLATFORM" --python-version "$PYTHON_VERSION" \
        $where --link-mode hardlink --no-compile-bytecode \
        --requirements /run/inputs/requirements.txt
    settle_paths "$site"
    rm -rf "$UV_CACHE_DIR"
    if [ -n "$into" ]; then return; fi
    for script in "$dist"/bin/*; do
        name="/usr/local/bin/${script##*/}"
        if [ -e "$script" ] && [ ! -e "$name" ]; then ln -s "$script" "$name"; fi
    done
}

# Which of several wheels that hold one path has it is chance: uv installs them all at once
# (flashinfer-python has a b12x/__init__.py of its own, without what vLLM's plugins import). It is the
# one whose name the folder has, else the last by name. $1: where they were installed.
settle_paths() {
    tab=$(printf '\t')
    for record in "$UV_CACHE_DIR"/archive-v*/*/*.dist-info/RECORD; do
        info=${record%/RECORD}
        project=${info##*/}
        project=${project%%-*}
        # A path with a comma is quoted; a file that has no sum is the wheel's own.
        awk -v OFS='\t' -v wheel="${info%/*}" -v project="$project" '
            match($0, /,[^,]+,[0-9]*\r?$/) {
                path = substr($0, 1, RSTART - 1); sum = substr($0, RSTART)
                gsub(/^"|"$/, "", path); top = path; sub("/.*", "", top)
                print path, (top == project) project, sum, wheel
            }
        ' "$record"
    done | LC_ALL=C sort -t "$tab" -k 1,2 | awk -F '\t' -v OFS='\t' '
        function settle() { if (differ) print path, wheel }
        $1 != path { settle(); differ = 0; sum = $3 }
        $3 != sum { differ = 1 }
        { path = $1; wheel = $4 }
        END { settle() }
    ' | while IFS="$tab" read -r path wheel; do ln -f "$wheel/$path" "$1/$path"; done
}

# Installs the packages that /run/inputs/packages names, from /run/inputs/debs and nowhere else.
# What a base image holds back gives way, downwards too: the lock says what goes in.
# Needs tmpfs mounts on /tmp, /var/cache, /var/lib/apt/lists and /var/log, so that nothing stays.
install_debs() {
    echo 'deb [trusted=yes] file:/run/inputs/debs ./' >/run/debs.list
    only='-o Dir::Etc::SourceList=/run/debs.list -o Dir::Etc::SourceParts=/dev/null'
    # A layer is whole or it is not there: nothing is to be written through to the disk.
    quick='-o DPkg::Options::=--force-unsafe-io -o DPkg::Path=/run/tools/instead:/usr/sbin:/usr/bin:/sbin:/bin'
    export DEBIAN_FRONTEND=noninteractive
    # shellcheck disable=SC2086 # $only is words
    apt-get -qq $only update
    # shellcheck disable=SC2046,SC2086 # and the packages' names are, too
    apt-get -qq $only $quick install --yes --no-install-recommends \
        --allow-downgrades --allow-change-held-packages $(cat /run/inputs/packages)
    if [ -e /run/certificates-changed ]; then update_certificates; fi
}

# The package's own script starts a thousand processes, which take half a minute under emulation;
# certificates.pl writes the same files. The script runs where there is more to do.
update_certificates() {
    more=$(find /usr/local/share/ca-certificates /etc/ca-certificates/update.d ! -type d)
    if [ -n "$more" ] || grep -q '^!' /etc/ca-certificates.conf; then
        update-ca-certificates
        return
    fi
    perl /run/tools/certificates.pl
    (cd /etc/ssl/certs && openssl rehash .)
}

# Puts the files of /run/inputs/files in the place of those that they were made for, and removes what
# the patches remove. What is there must be what the lock expects, before and after.
apply_patches() {
    check_sums /run/inputs/before.sha256
    check_absent /run/inputs/absent
    if [ -d /run/inputs/files ]; then
        (cd /run/inputs/files && find . -type f) | while IFS= read -r path; do
            mkdir -p "/${path%/*}"
            cat "/run/inputs/files/$path" >"/$path"
        done
    fi
    while read -r mode path; do chmod "$mode" "$path"; done </run/inputs/modes
    while IFS= read -r path; do rm "$path"; done </run/inputs/removed
    check_sums /run/inputs/after.sha256
    check_absent /run/inputs/removed
}

# The checksums of a file, which may have none.
check_sums() {
    if [ -s "$1" ]; then sha256sum --check --strict --quiet "$1"; fi
}

# The paths of a file are not there.
check_absent() {
    while IFS= read -r path; do
        if [ -e "$path" ]; then
            echo "$path: is there" >&2
            exit 1
        fi
    done <"$1"
}

# The last word of every step.
tidy() {
    find / -xdev -name __pycache__ -type d -newer /run/step-begin -prune -exec rm -rf {} +
    find / -xdev -newer /run/step-begin -exec touch -h -d "$step_date" {} +
}
