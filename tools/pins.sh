#!/bin/sh
# Compiles requirements/{cpu,gpu}.txt from pyproject.toml: exact versions with hashes, no addresses.
# Run it after changing a dependency; review the difference like code.
set -eu
cd "$(dirname "$0")/.."
links="${UV_FIND_LINKS:-${PIP_FIND_LINKS:-}}"  # where the CPU build of torch is found
unset UV_FIND_LINKS
uv="${UV:-uv}"
compile() {
    target="$1"; shift
    "$uv" pip compile pyproject.toml --quiet --extra all --group dev --generate-hashes --no-annotate \
        --no-emit-index-url --no-emit-find-links --custom-compile-command "tools/pins.sh" "$@" --output-file "$target"
}
torch=2.13.0
# The one release that img2dataset 1.47 and open_clip 3.3's own reader both work with.
webdataset=0.2.86
printf 'torch==%s\nwebdataset==%s\n' "$torch" "$webdataset" > requirements/torch-gpu.in
printf 'torch==%s+cpu\nwebdataset==%s\n' "$torch" "$webdataset" > requirements/torch-cpu.in
compile requirements/gpu.txt --universal --python-version 3.11 --constraint requirements/torch-gpu.in
[ -z "$links" ] || export UV_FIND_LINKS="$links"
compile requirements/cpu.txt --python-version 3.11 --python-platform x86_64-manylinux_2_28 --constraint requirements/torch-cpu.in
rm requirements/torch-gpu.in requirements/torch-cpu.in
