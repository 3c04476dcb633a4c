#!/bin/bash
# Trains on a TPU slice from a queued resource: creates the slice, installs this commit on all
# workers, runs train.py on them, resumes after a preemption, and deletes the slice at the end:
#   NAME=b0 ZONE=us-west4-a TYPE=v5litepod-16 scripts/tpu.sh \
#       --config=configs/imagenet.py:b0 --workdir=/shared/runs/b0
# With --dry_run it checks the flags and shows the commands. Other variables: RUNTIME, the slice's
# software version; CREATE="--spot", more flags for its creation; SETUP, a command for each worker
# before the installation; PACKAGES, more packages to install; KEEP=1, which keeps the slice;
# MOST_RESTARTS; POLL_SECONDS. See docs/tpu.md.
set -uo pipefail
cd "$(dirname "$0")/.." || exit
source scripts/launch.sh
read_arguments "$@"
need_workdir
need_name "the name of the slice"
need ZONE "the zone of the slice, as in us-west4-a"
need TYPE "the accelerator type of the slice, as in v5litepod-16"
case $TYPE in
    v5litepod-*) software=v2-alpha-tpuv5-lite ;;
    v5p-*) software=v2-alpha-tpuv5 ;;
    v6e-*) software=v2-alpha-tpuv6e ;;
    *) software=tpu-ubuntu2204-base ;;
esac
RUNTIME=${RUNTIME:-$software}
POLL_SECONDS=${POLL_SECONDS:-30}

tpus() {
    run gcloud --quiet compute tpus "$@" --zone="$ZONE"
}

# The state of the queued resource; empty if there is none.
state() {
    gcloud --quiet compute tpus queued-resources list --zone="$ZONE" --filter="name~/$NAME\$" \
        --format="value(state.state)"
}

create() {
    local more
    read -ra more <<< "${CREATE:-}"
    tpus queued-resources create "$NAME" --node-id="$NAME" --accelerator-type="$TYPE" \
        --runtime-version="$RUNTIME" "${more[@]}"
}

delete() {
    tpus queued-resources delete "$NAME" --force
}

# Creates the slice if there is none or it was preempted, and waits until it is active.
wait_for_slice() {
    local now='' before=''
    if [[ -z $DRY_RUN ]]; then
        now=$(state) || return
    fi
    case $now in
        FAILED | SUSPENDED) delete && create || return ;;
        "") create || return ;;
    esac
    while [[ -z $DRY_RUN ]]; do
        now=$(state)
        [[ $now == "$before" ]] || echo "$(date +%H:%M) slice $NAME: $now"
        before=$now
        case $now in
            ACTIVE) return ;;
            "" | FAILED | SUSPENDED) return 75 ;;
        esac
        sleep "$POLL_SECONDS"
    done
}

on_all_workers() {
    tpus tpu-vm ssh "$NAME" --worker=all --command="$1"
}

# Installs the code of this commit, and Python 3.12 with the pinned requirements.
install() {
    local packages
    read -ra packages <<< "jax[tpu] ${PACKAGES:-}"
    on_all_workers "${SETUP:-true}" &&
        tpus tpu-vm scp "$archive" "$NAME:effnet_jax.tar" --worker=all &&
        on_all_workers "mkdir -p effnet_jax && tar -xf effnet_jax.tar -C effnet_jax &&
cd effnet_jax && python3 -m pip install --quiet --user uv &&
python3 -m uv venv --quiet --allow-existing --python=3.12 .venv &&
python3 -m uv pip install --quiet -r requirements.txt $(printf '%q ' "${packages[@]}")"
}

# gcloud connects again after a connection breaks; flock keeps a worker from training twice.
train() {
    on_all_workers "cd effnet_jax && flock --timeout 300 --conflict-exit-code 75 .lock .venv/bin/python \
train.py $(printf '%q ' "${ARGS[@]}")"
}

left_alone() {
    echo "slice $NAME is kept and costs money; the same command continues with it. To delete it:"
    echo "gcloud compute tpus queued-resources delete $NAME --zone=$ZONE --force"
}

check_arguments || exit
git diff --quiet HEAD || echo "warning: changes that are not committed are not installed" >&2
archive=$(mktemp --suffix=.tar) && git archive --output="$archive" HEAD || exit
trap 'rm -f "$archive"' EXIT
trap 'left_alone; exit 130' INT TERM

was_there=''
for (( restarts = 0; ; restarts++ )); do
    wait_for_slice && was_there=yes && install && train
    code=$?
    [[ -z $DRY_RUN ]] || break
    # After a preemption the connection is lost, and the exit code says nothing about the run.
    if ! can_resume "$code" && [[ $code -eq 0 || -z $was_there || $(state) == ACTIVE ]]; then
        break
    fi
    if (( restarts >= MOST_RESTARTS )); then
        echo "exit code $code after $restarts restarts: not started again"
        break
    fi
    echo "exit code $code: starting again"
    sleep "$POLL_SECONDS"
done
if [[ -n $DRY_RUN ]]; then
    echo "after exit code 75, or 128 and above except 130, or a preemption, all this runs again, at"
    echo "most $MOST_RESTARTS times; a slice that was preempted is deleted first"
fi
if [[ -n ${KEEP:-} ]] || ! delete; then left_alone; fi
exit "$code"
