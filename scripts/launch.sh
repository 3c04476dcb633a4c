# shellcheck shell=bash
# What the launchers share; they source it from the root of the checkout.
PYTHON=${PYTHON:-.venv/bin/python}
MOST_RESTARTS=${MOST_RESTARTS:-50}

fail() {
    echo "error: $*" >&2
    exit 2
}

# Reads --dry_run; the other arguments, which are train.py's, go to the array ARGS.
read_arguments() {
    DRY_RUN='' ARGS=()
    local each
    for each in "$@"; do
        if [[ $each == --dry_run ]]; then DRY_RUN=yes; else ARGS+=("$each"); fi
    done
}

# Machines that are given back keep nothing.
need_workdir() {
    [[ "${ARGS[*]}" == *--workdir* ]] || fail "give --workdir=DIR, on storage that all machines share"
}

# need NAME MEANING: the environment has to set a variable.
need() {
    [[ -n ${!1:-} ]] || fail "the variable $1 is not set; give $1=VALUE, $2"
}

# need_name MEANING: as `need`, of a NAME that Google Cloud and Kubernetes accept.
need_name() {
    need NAME "$1"
    [[ $NAME =~ ^[a-z]([-a-z0-9]{0,38}[a-z0-9])?$ ]] ||
        fail "NAME=$NAME: use at most 40 lower-case letters, digits and hyphens, and a letter first"
}

# Runs a command, or with --dry_run shows it.
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

# Reads the flags and the config as train.py does, before machines are waited for.
check_arguments() {
    if [[ ! -x $PYTHON ]]; then
        echo "the flags are not checked here, because $PYTHON is missing (make .venv/ready creates .venv)" >&2
        return
    fi
    "$PYTHON" -c 'from effnet_jax import cli; from effnet_jax.tools.train import PARSER
PARSER.joins = False
cli.run(PARSER.start_seconds, PARSER)' "${ARGS[@]}"
}

# Whether a run that ended with this exit code goes on when it is started again. 75: saved, or
# another process was lost. From 128 on: killed by a signal, as by JAX where the first process died,
# or ssh failed (255); but Ctrl-C (130) is meant. All else would only happen again.
can_resume() {
    [[ $1 -eq 75 || ( $1 -ge 128 && $1 -ne 130 ) ]]
}
