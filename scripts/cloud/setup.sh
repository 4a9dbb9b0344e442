#!/usr/bin/env bash
# Prepares a project for its first job: enables APIs, creates a bucket and an image repository, and
# creates two accounts with minimal roles, one for the workers and one for builds of the image. If
# the script runs again, it does not change existing resources.
#
#   scripts/cloud/setup.sh PROJECT REGION BUCKET
set -euo pipefail

if [ $# -ne 3 ]; then
    echo "usage: $0 PROJECT REGION BUCKET" >&2
    exit 2
fi
project=$1
region=$2
bucket=gs://${3#gs://}
repository=qwen-activations
worker=qwen-activations@$project.iam.gserviceaccount.com
builder=qwen-activations-build@$project.iam.gserviceaccount.com

gcloud services enable --project "$project" \
    artifactregistry.googleapis.com cloudbuild.googleapis.com cloudresourcemanager.googleapis.com \
    compute.googleapis.com dataflow.googleapis.com iam.googleapis.com logging.googleapis.com \
    storage.googleapis.com

# The bucket is in the region of the workers, so traffic between the two is free of charge.
if ! gcloud storage buckets describe "$bucket" --project "$project" >/dev/null 2>&1; then
    gcloud storage buckets create "$bucket" --project "$project" --location "$region" \
        --uniform-bucket-level-access --public-access-prevention
fi

if ! gcloud artifacts repositories describe "$repository" --project "$project" \
    --location "$region" >/dev/null 2>&1; then
    gcloud artifacts repositories create "$repository" --project "$project" \
        --location "$region" --repository-format docker
fi

for account in "$worker" "$builder"; do
    if ! gcloud iam service-accounts describe "$account" --project "$project" >/dev/null 2>&1; then
        gcloud iam service-accounts create "${account%%@*}" --project "$project" \
            --display-name "${account%%@*}"
    fi
done

on_project() { # ACCOUNT ROLE
    gcloud projects add-iam-policy-binding "$project" --condition None --quiet \
        --member "serviceAccount:$1" --role "$2" >/dev/null
}

on_bucket() { # ACCOUNT ROLE
    gcloud storage buckets add-iam-policy-binding "$bucket" --project "$project" \
        --member "serviceAccount:$1" --role "$2" >/dev/null
}

on_repository() { # ACCOUNT ROLE
    gcloud artifacts repositories add-iam-policy-binding "$repository" --project "$project" \
        --location "$region" --member "serviceAccount:$1" --role "$2" >/dev/null
}

# dataflow.worker allows a machine to receive work from the service. The other roles give access to
# the data in the bucket and the image in the repository.
on_project "$worker" roles/dataflow.worker
on_bucket "$worker" roles/storage.objectUser
on_repository "$worker" roles/artifactregistry.reader

# The default build account of a new project has either no role at all or the editor role.
on_project "$builder" roles/logging.logWriter
on_bucket "$builder" roles/storage.objectUser
on_repository "$builder" roles/artifactregistry.writer

cat <<EOF
bucket           $bucket
image            $region-docker.pkg.dev/$project/$repository/job:TAG
worker account   $worker
build account    $builder
To launch jobs, a user needs roles/dataflow.developer on the project and
roles/iam.serviceAccountUser on the worker account. To build images, a user needs
roles/cloudbuild.builds.editor on the project and roles/iam.serviceAccountUser
on the build account.
EOF
