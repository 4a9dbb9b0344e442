#!/bin/sh
# Resolve setup.py into the pinned, hashed files beside this script:
#   requirements/lock.sh UV [--upgrade]
# A version that is already pinned stays while setup.py allows it; --upgrade renews all.
set -eu
cd "$(dirname "$0")/.."
uv=$1
shift
upgrade=${1:-}

resolve() {
    output=requirements/$1
    shift
    "$uv" pip compile --quiet --python-version 3.11 --generate-hashes --no-emit-index-url \
        --custom-compile-command 'make lock' --output-file "$output" ${upgrade:+"$upgrade"} "$@"
}

resolve uv.txt --universal requirements/uv.in
resolve base.txt --universal setup.py requirements/build.in
for extra in dev tpu cuda; do
    more=
    [ "$extra" != dev ] || more=requirements/torch-dependencies.in
    resolve "$extra.txt" --universal setup.py --extra "$extra" requirements/build.in $more \
        --constraint requirements/base.txt
done

# Airflow bounds few of its dependencies: they are taken as they were when it was released.
resolve composer.txt --exclude-newer 2026-03-15 requirements/composer.in

resolve interop.txt requirements/interop.in requirements/torch-dependencies.in \
    --overrides requirements/interop-overrides.in
