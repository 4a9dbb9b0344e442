#!/usr/bin/env bash
# What a project needs before its first job: APIs, a bucket, an image repository, and an account for
# the workers that may do no more than the job does. Run again, it changes nothing that is there.
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
repository=qwen2-activations
worker=qwen2-activations@$project.iam.gserviceaccount.com

gcloud services enable --project "$project" \
    artifactregistry.googleapis.com cloudbuild.googleapis.com compute.googleapis.com \
    dataflow.googleapis.com logging.googleapis.com storage.googleapis.com

# The bucket in the workers' region: model and tasks are read, and activations written, at no charge
# for traffic.
if ! gcloud storage buckets describe "$bucket" --project "$project" >/dev/null 2>&1; then
    gcloud storage buckets create "$bucket" --project "$project" --location "$region" \
        --uniform-bucket-level-access --public-access-prevention
fi

if ! gcloud artifacts repositories describe "$repository" --project "$project" \
    --location "$region" >/dev/null 2>&1; then
    gcloud artifacts repositories create "$repository" --project "$project" \
        --location "$region" --repository-format docker
fi

if ! gcloud iam service-accounts describe "$worker" --project "$project" >/dev/null 2>&1; then
    gcloud iam service-accounts create "${worker%%@*}" --project "$project" \
        --display-name "Workers of qwen2-activations"
fi

# dataflow.worker lets a machine take work from the service; the data are in this bucket alone, and
# the image in this repository alone.
gcloud projects add-iam-policy-binding "$project" --condition None --quiet \
    --member "serviceAccount:$worker" --role roles/dataflow.worker >/dev/null
gcloud storage buckets add-iam-policy-binding "$bucket" --project "$project" \
    --member "serviceAccount:$worker" --role roles/storage.objectUser >/dev/null
gcloud artifacts repositories add-iam-policy-binding "$repository" --project "$project" \
    --location "$region" \
    --member "serviceAccount:$worker" --role roles/artifactregistry.reader >/dev/null

cat <<EOF
bucket           $bucket
image            $region-docker.pkg.dev/$project/$repository/job:TAG
worker account   $worker
Whoever launches jobs needs roles/dataflow.developer on the project and
roles/iam.serviceAccountUser on the worker account.
EOF
