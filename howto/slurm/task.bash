#!/bin/bash
# One process of a step, in the image: task.bash IMAGE PARAMETERS...
set -euo pipefail

# What torch.distributed reads. Slurm starts the processes itself, so that it sees their exit codes; torchrun's is 1.
if ((SLURM_NTASKS > 1)); then
  export RANK=$SLURM_PROCID LOCAL_RANK=$SLURM_LOCALID WORLD_SIZE=$SLURM_NTASKS
  export LOCAL_WORLD_SIZE=$((SLURM_NTASKS / SLURM_JOB_NUM_NODES))
  export MASTER_ADDR MASTER_PORT=$((20000 + SLURM_JOB_ID % 10000))
else
  unset MASTER_ADDR
fi

# --cleanenv keeps the settings of the login shell out, HF_HOME for one. A variable APPTAINERENV_X is X in the image,
# and so no token stands on a command line.
for name in HF_TOKEN RANK LOCAL_RANK WORLD_SIZE LOCAL_WORLD_SIZE MASTER_ADDR MASTER_PORT CUDA_VISIBLE_DEVICES \
  "${!ASR_@}" "${!NCCL_@}" "${!WANDB_@}"; do
  if [[ -v $name ]]; then
    export "APPTAINERENV_$name=${!name}"
  fi
done
exec apptainer run --nv --cleanenv --no-home --bind "$DATA:/data" --pwd /data "$@"
