#!/usr/bin/env bash
# What true sizes take on one GPU, in fifteen minutes: random weights, nothing is downloaded. One line of JSON a case.
#
#     benchmarks/fifteen_minutes.sh [FILE]        # DRY=1 says the plan of each case, on any machine
#
# A case that fails or takes longer than its seconds is named, and the next one begins. The reward is a file size.
set -uo pipefail
OUT=${1:-large.jsonl}
export HF_HUB_OFFLINE=1
SMALL=("prompts={train: prompts/train.txt, heldout: null}" "rewards={jpeg: {use: jpeg_compressibility}}"
  train.prompts=1 train.group=4 train.updates=1 train.micro_batch=1 train.rollout_batch=4 watch=null)

run_case() { # SECONDS RECIPE KEY=VALUE ...
  local limit=$1
  shift
  echo "== $*"
  if [ -n "${DRY:-}" ]; then
    flowrl run "$@" "${SMALL[@]}" --dry-run | sed -n '/^memory/,$p'
  else
    timeout "$limit" python benchmarks/large.py "$@" "${SMALL[@]}" --iterations 3 --json "$OUT" || echo "failed: $*"
  fi
}

SD3=(flow_grpo_sd3 model=random:stable-diffusion-3.5-medium objective.kl=0)
FLUX=(flux_80gb model=random:FLUX.1-dev)
WAN=(flow_grpo_wan model=random:Wan2.1-T2V-1.3B objective.kl=0 sampler.steps=4)
run_case 90 "${SD3[@]}" offload=false sampler.steps=5
run_case 120 "${SD3[@]}" offload=false sampler.steps=5 pipeline.height=1024 pipeline.width=1024
run_case 120 "${FLUX[@]}" offload=false
run_case 120 "${FLUX[@]}" offload=true train.gradient_checkpointing=true block_offload=true
run_case 150 "${FLUX[@]}" offload=false pipeline.height=1024 pipeline.width=1024
run_case 120 "${WAN[@]}" offload=false
