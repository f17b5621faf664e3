#!/usr/bin/env bash
# GRPO on a slice of a TPU pod: makes the slice, installs on each of its hosts, and starts the same command on all.
# Needs gcloud, logged in to a project with quota. Files that all hosts must see lie in a bucket, mounted on each.
#
#   BUCKET=my-bucket docs/launch/tpu_pod.sh            (first start, or on after a stop or a preemption)
set -euo pipefail

NAME=${NAME:-vqathinker}
ZONE=${ZONE:-us-central1-a}
TYPE=${TYPE:-v5litepod-64}
VERSION=${VERSION:-v2-alpha-tpuv5-lite}
RECIPE=${RECIPE:-configs/grpo_8b_v5e_64.py}
BUCKET=${BUCKET:?the bucket with InternVL3-8B-motion/, lsvq_train.jsonl and LSVQ/}
REPOSITORY=${REPOSITORY:?where each host can clone this repository from}

tpu() { gcloud compute tpus tpu-vm "$1" "$NAME" --zone "$ZONE" "${@:2}"; }

tpu describe >/dev/null 2>&1 || tpu create --accelerator-type "$TYPE" --version "$VERSION"

tpu ssh --worker all --command "
  set -e
  test -d vqathinker-jax || git clone $REPOSITORY vqathinker-jax
  cd vqathinker-jax
  test -d .venv || (python3.11 -m venv .venv && .venv/bin/pip install --quiet -e '.[tpu]')
  command -v gcsfuse >/dev/null || (echo 'gcsfuse is missing: see cloud.google.com/storage/docs/gcsfuse-install' >&2; exit 1)
  mkdir -p ~/shared
  mountpoint -q ~/shared || gcsfuse --implicit-dirs $BUCKET ~/shared
"

# --processes.count 0: the slice says how many hosts there are and which one each is.
tpu ssh --worker all --command "
  cd vqathinker-jax
  .venv/bin/python run.py train $RECIPE --processes.count 0 \
    --run-dir ~/shared/runs/grpo_8b \
    --checkpoint ~/shared/InternVL3-8B-motion \
    --data.manifests ~/shared/lsvq_train.jsonl --data.folders ~/shared/LSVQ --data.workers 16
"
