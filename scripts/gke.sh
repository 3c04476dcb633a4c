#!/bin/bash
# Trains on GKE as a JobSet with one pod for each machine; all pods start again after a stop:
#   NAME=b0 IMAGE=REGISTRY/effnet_jax:tpu ACCELERATOR=tpu-v5-lite-podslice TOPOLOGY=4x4 CLAIM=shared \
#       scripts/gke.sh --config=configs/imagenet.py:b0 --workdir=/shared/runs/b0
# For GPUs give ACCELERATOR=nvidia-h100-80gb NODES=2 and no TOPOLOGY. With --dry_run it checks the
# flags and prints the manifest. Other variables: CHIPS, the number in a machine, by default 4 for TPUs
# and 8 for GPUs; CLAIM, a volume claim that is mounted at /shared; MOST_RESTARTS. See docs/gke.md.
set -uo pipefail
cd "$(dirname "$0")/.." || exit
source scripts/launch.sh
read_arguments "$@"
need_workdir
need_name "the name of the JobSet"
need IMAGE "the image built from the Dockerfile"
need ACCELERATOR "the label of the nodes, as in tpu-v5-lite-podslice or nvidia-h100-80gb"

place=()
if [[ -n ${TOPOLOGY:-} ]]; then
    [[ $TOPOLOGY =~ ^[1-9][0-9]*(x[1-9][0-9]*){1,2}$ ]] || fail "TOPOLOGY=$TOPOLOGY is not like 4x4 or 2x2x4"
    CHIPS=${CHIPS:-4}
    all=$(( ${TOPOLOGY//x/*} ))
    (( all % CHIPS == 0 )) || fail "TOPOLOGY=$TOPOLOGY has $all chips, which CHIPS=$CHIPS does not divide; set CHIPS to the chips of a machine"
    NODES=$(( all / CHIPS ))
    resource=google.com/tpu kind=cloud.google.com/gke-tpu-accelerator
else
    need NODES "the number of machines with GPUs; for TPUs give TOPOLOGY"
    CHIPS=${CHIPS:-8}
    resource=nvidia.com/gpu kind=cloud.google.com/gke-accelerator
    # On TPUs, JAX gets the place of each pod from GKE.
    (( NODES == 1 )) || place=("--coordinator_address=$NAME-train-0-0.$NAME:55527"
        "--num_processes=$NODES" "--process_id=\$(JOB_COMPLETION_INDEX)")
fi

# Prints words as items of a YAML list.
quoted() {
    local each text
    for each in "$@"; do
        text=${each//\\/\\\\}
        text=${text//\"/\\\"}
        printf '"%s", ' "$text"
    done
}

# In args, Kubernetes expands $(NAME) and turns $$ into $.
manifest() {
    cat <<END
apiVersion: jobset.x-k8s.io/v1alpha2
kind: JobSet
metadata:
  name: $NAME
END
    [[ -z ${TOPOLOGY:-} ]] || cat <<END
  annotations:
    # The job gets a whole slice for itself.
    alpha.jobset.sigs.k8s.io/exclusive-topology: cloud.google.com/gke-nodepool
END
    cat <<END
spec:
  network:
    enableDNSHostnames: true  # A headless service called $NAME.
  successPolicy:
    operator: All
  failurePolicy:
    maxRestarts: $MOST_RESTARTS
    rules:
    # An exit code that would only occur again; see podFailurePolicy. Other failures restart all pods.
    - name: mistake
      action: FailJobSet
      onJobFailureReasons: [PodFailurePolicy]
  replicatedJobs:
  - name: train
    replicas: 1
    template:
      spec:
        completionMode: Indexed
        completions: $NODES
        parallelism: $NODES
        backoffLimit: 0  # A single pod can't resume: the JobSet starts all pods again.
        podFailurePolicy:
          rules:
          - action: FailJob
            onExitCodes:
              containerName: train
              operator: In
              values: [1, 2, 3, 126, 127, 128, 130]
        template:
          spec:
            restartPolicy: Never
            terminationGracePeriodSeconds: 120  # Time to save a checkpoint.
            nodeSelector:
              $kind: $ACCELERATOR
END
    [[ -z ${TOPOLOGY:-} ]] || echo "              cloud.google.com/gke-tpu-topology: $TOPOLOGY"
    cat <<END
            containers:
            - name: train
              image: $IMAGE
              args: [$(quoted "${ARGS[@]//\$/\$\$}" "${place[@]}")]
              resources:
                limits:
                  $resource: $CHIPS
END
    [[ -z ${CLAIM:-} ]] || cat <<END
              volumeMounts:
              - name: shared
                mountPath: /shared
            volumes:
            - name: shared
              persistentVolumeClaim:
                claimName: $CLAIM
END
}

[[ "${ARGS[*]}" != *[[:cntrl:]]* ]] || fail "an argument has a line break or control character"
check_arguments || exit
text=$(manifest)
if [[ -n $DRY_RUN ]]; then
    echo "$text"
    echo "# would run: kubectl create --filename=-"
    exit
fi
kubectl create --filename=- <<< "$text" || exit
echo "to follow it:  kubectl logs --follow job/$NAME-train-0"
echo "its restarts:  kubectl get jobset $NAME"
echo "to stop it:    kubectl delete jobset $NAME"
