#!/bin/sh
# Resolve pyproject.toml into the pinned, hashed files in this folder:
#   requirements/lock.sh UV [--upgrade]
# A pinned version stays while pyproject.toml allows it; --upgrade updates all. A universal lock
# serves every supported Python: markers select versions that depend on the Python version.
set -eu
cd "$(dirname "$0")/.."
uv=$1
upgrade=${2:-}

resolve() {
    output=requirements/$1
    shift
    "$uv" pip compile --quiet --python-version 3.11 --generate-hashes --no-emit-index-url \
        --no-annotate --custom-compile-command 'make lock' --output-file "$output" \
        ${upgrade:+"$upgrade"} "$@"
}

resolve uv.txt --universal requirements/uv.in
resolve base.txt --universal pyproject.toml requirements/build.in
for extra in dev tpu cuda; do
    resolve "$extra.txt" --universal pyproject.toml --extra "$extra" requirements/build.in \
        --constraint requirements/base.txt
done
resolve interop.txt --universal pyproject.toml requirements/build.in requirements/interop.in \
    --constraint requirements/base.txt --overrides requirements/interop-overrides.in
resolve docs.txt --universal requirements/docs.in --constraint requirements/base.txt

# Only for Composer's Python. Airflow bounds few of its dependencies, so the lock takes the versions
# that were current when Airflow was released.
resolve composer.txt --exclude-newer 2026-03-15 requirements/composer.in
