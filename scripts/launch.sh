# shellcheck shell=bash
# Functions of the launchers, which source this file from the root of the checkout.
PYTHON=${PYTHON:-.venv/bin/python}
MOST_RESTARTS=${MOST_RESTARTS:-50}

fail() {
    echo "error: $*" >&2
    exit 2
}

# Reads --dry_run; puts the other arguments, which are those of train.py, into the array ARGS.
read_arguments() {
    DRY_RUN='' ARGS=()
    local each
    for each in "$@"; do
        if [[ $each == --dry_run ]]; then DRY_RUN=yes; else ARGS+=("$each"); fi
    done
}

# On storage of the machines, checkpoints would be lost with them.
need_workdir() {
    [[ "${ARGS[*]}" == *--workdir* ]] || fail "give --workdir=DIR, on storage that all machines share, or in a bucket"
}

# need NAME MEANING: fails unless the environment variable NAME is set.
need() {
    [[ -n ${!1:-} ]] || fail "the variable $1 is not set; give $1=VALUE, $2"
}

# need_name MEANING: fails unless NAME is set and valid for Google Cloud and Kubernetes.
need_name() {
    need NAME "$1"
    [[ $NAME =~ ^[a-z]([-a-z0-9]{0,38}[a-z0-9])?$ ]] ||
        fail "NAME=$NAME: use at most 40 lower-case letters, digits and hyphens, and a letter first"
}

# Runs a command, or shows it with --dry_run.
run() {
    if [[ -n $DRY_RUN ]]; then
        local word
        printf 'would run:'
        for word in "$@"; do
            if [[ $word =~ ^[A-Za-z0-9_./:=@-]+$ ]]; then printf ' %s' "$word"; else printf ' %s' "${word@Q}"; fi
        done
        echo
    else
        "$@"
    fi
}

# Checks the flags and the config as train.py does, before waiting for machines.
check_arguments() {
    if [[ ! -x $PYTHON ]]; then
        echo "the flags are not checked here, because $PYTHON is missing (make .venv/ready creates .venv)" >&2
        return
    fi
    "$PYTHON" -c 'from effnet_jax import cli; from effnet_jax.tools.train import PARSER
PARSER.joins = False
cli.run(PARSER.start_seconds, PARSER)' "${ARGS[@]}"
}

# Whether a run that ended with this exit code can resume. 75: it saved, or another process was lost.
# 128 and above: a signal killed it, for example from JAX because process 0 died, or ssh failed (255).
# Ctrl-C (130) is intended, and any other error would only occur again.
can_resume() {
    [[ $1 -eq 75 || ( $1 -ge 128 && $1 -ne 130 ) ]]
}
