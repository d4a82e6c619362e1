# What both batch scripts do: run the job's processes, hand on SIGTERM, and put the job back into the queue where the
# same command continues. Scripts, images and data lie in the folder that they are submitted from.
# shellcheck shell=bash

export DATA=${DATA:-$SLURM_SUBMIT_DIR/data} # /data of the images; all nodes see it
RESTARTS=${RESTARTS:-20}

# run_step IMAGE PARAMETERS...: ends the batch script, with the exit code of the job.
run_step() {
  mkdir -p "$DATA"
  read -r MASTER_ADDR < <(scontrol show hostnames "$SLURM_JOB_NODELIST")
  export MASTER_ADDR
  # srun does not take the number of cores from sbatch, and gives a task one (since Slurm 22.05).
  srun --wait=300 --cpus-per-task="${SLURM_CPUS_PER_TASK:-1}" "$SLURM_SUBMIT_DIR/task.bash" "$@" &
  local step=$! code signalled
  # To the job's processes: srun itself, when it gets SIGTERM, kills them.
  trap 'signalled=1; scancel --quiet --signal=TERM "$SLURM_JOB_ID" || true' TERM
  # A signal ends `wait` early; the exit code is that of the last one.
  while
    signalled=0 code=0
    wait "$step" || code=$?
    ((signalled))
  do :; done
  # 1: a bug; 2: permanent. After all else the same command continues: 75, 143, and what a lost task leaves. For srun tells
  # the highest code of all tasks, so that 137 of one that was killed hides the 75 of those that noticed it. A job that
  # Slurm is ending does not run any more: a preempted one goes back by itself, and a cancelled one shall not.
  if ((code > 2)) && [[ $(squeue --noheader --job "$SLURM_JOB_ID" --format %T) == RUNNING ]]; then
    if ((${SLURM_RESTART_COUNT:-0} < RESTARTS)); then
      scontrol requeue "$SLURM_JOB_ID"
    else
      echo "not put back into the queue: that was done $RESTARTS times" >&2
    fi
  fi
  exit "$code"
}
