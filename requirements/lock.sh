#!/bin/sh
# Resolve setup.py into the pinned, hashed files beside this script: requirements/lock.sh UV
# A version that is already pinned stays while setup.py allows it; `UV_UPGRADE=1` renews them all.
set -eu
cd "$(dirname "$0")/.."
uv=$1

resolve() {
    output=requirements/$1
    shift
    "$uv" pip compile --quiet --universal --python-version 3.11 --generate-hashes \
        --no-emit-index-url --custom-compile-command 'make lock' --output-file "$output" "$@"
}

resolve uv.txt requirements/uv.in
resolve base.txt setup.py requirements/build.in
for extra in dev tpu cuda; do
    more=
    [ "$extra" != dev ] || more=requirements/torch-dependencies.in
    resolve "$extra.txt" setup.py --extra "$extra" requirements/build.in $more \
        --constraint requirements/base.txt
done
