# shellcheck shell=sh
# Sourced by the RUN steps of the layers. What a step leaves behind depends on its inputs alone:
# no bytecode, and no time of the day in a file's date.
set -eu

# The date that every file made by a step gets. Not 0: zip archives begin in 1980.
step_date='2000-01-01 00:00:00 UTC'

# /run is a tmpfs in every step, so the marker and the mount points beside it reach no layer.
: >/run/step-begin

# Installs the hash-pinned wheels of /run/inputs/requirements.txt, natively even where the
# image is of another architecture: uv is a static binary of the machine that builds.
# Needs PYTHON_VERSION (X.Y) and PYTHON_PLATFORM (a uv platform name).
install_wheels() {
    dist="/usr/local/lib/python${PYTHON_VERSION}/dist-packages"
    # The bundle of the machine that builds, where a proxy re-signs TLS; a secret, never a layer.
    if [ -s /run/ca.pem ]; then export SSL_CERT_FILE=/run/ca.pem; fi
    links=
    if [ -d /run/inputs/wheels ]; then links='--find-links /run/inputs/wheels'; fi
    # The cache lies in the same layer as the target, so that wheels are unpacked once and
    # linked, not copied; it is gone when the step ends.
    export UV_CACHE_DIR=/usr/local/.uv-cache UV_NO_INSTALLER_METADATA=1 UV_HTTP_TIMEOUT=120
    # shellcheck disable=SC2086 # $links is two words or none
    /run/uv/uv pip install --no-config --no-python-downloads --no-progress --require-hashes --no-deps --only-binary :all: $links \
        --python-platform "$PYTHON_PLATFORM" --python-version "$PYTHON_VERSION" \
        --target "$dist" --link-mode hardlink --no-compile-bytecode \
        --requirements /run/inputs/requirements.txt
    rm -rf "$UV_CACHE_DIR"
    for script in "$dist"/bin/*; do
        name="/usr/local/bin/${script##*/}"
        if [ -e "$script" ] && [ ! -e "$name" ]; then ln -s "$script" "$name"; fi
    done
}

# The last word of every step.
tidy() {
    find /usr -xdev -name __pycache__ -type d -newer /run/step-begin -prune -exec rm -rf {} +
    find / -xdev -newer /run/step-begin ! -type l -exec touch -d "$step_date" {} +
    find / -xdev -newer /run/step-begin -type l -exec touch -h -d "$step_date" {} +
}
