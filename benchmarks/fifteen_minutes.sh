#!/usr/bin/env bash
# What true sizes take on one GPU, in fifteen minutes: random weights, nothing is downloaded. One line of JSON a case.
#
#     benchmarks/fifteen_minutes.sh [FILE]        # DRY=1 says the plan of each case, on any machine
#     TINY=1 benchmarks/fifteen_minutes.sh [FILE] # whether each case runs: on a CPU, by few blocks and small pictures
#     ONLY=Wan benchmarks/fifteen_minutes.sh      # the cases with this word among their keys
#
# A case that fails or takes longer than its seconds is named, and the next one begins; the script then ends with 1. The
# reward of pictures is a file size.
set -uo pipefail
OUT=${1:-large.jsonl}
export HF_HUB_OFFLINE=1
SMALL=("prompts={train: prompts/train.txt, heldout: null}" "rewards={jpeg: {use: jpeg_compressibility}}"
  train.prompts=1 train.group=4 train.updates=1 train.micro_batch=1 train.rollout_batch=4 watch=null)

QUESTIONS=("prompts={train: shapes-look/train, heldout: null}" "rewards={right: {use: exact_match}}"
  train.prompts=2 train.updates=1 train.rollout_batch=10 watch=null generation.max_new_tokens=256)
FAILED=0

run_case() { # SECONDS RECIPE KEY=VALUE ...
  [[ $* == *${ONLY:-}* ]] || return 0
  local limit=$1 iterations=3
  shift
  echo "== $*"
  local keys=("$@")
  if [[ $1 == vlm* ]]; then keys+=("${QUESTIONS[@]}"); else keys+=("${SMALL[@]}"); fi
  if [ -n "${TINY:-}" ]; then
    limit=900 iterations=2
    keys+=(device=cpu dtype.model=float32 train.group=2 train.rollout_batch=2)
    if [[ $1 == vlm* ]]; then
      keys+=(generation.max_new_tokens=8)
    else
      local side=64
      [[ $* == *1024* ]] && side=128
      keys+=(pipeline.height=$side pipeline.width=$side pipeline.max_sequence_length=32)
    fi
    [[ $* == *Wan* ]] && keys+=(pipeline.num_frames=5)
  fi
  if [ -n "${DRY:-}" ]; then
    flowrl run "${keys[@]}" --dry-run | sed -n '/^memory/,$p'
  else
    timeout "$limit" python benchmarks/large.py "${keys[@]}" --iterations $iterations ${TINY:+--repeats 1} --json "$OUT" ||
      { echo "failed: $*" && FAILED=1; }
  fi
}

TWO=${TINY:+?blocks=2} ONE=${TINY:+?blocks=1} # the last block of SD3.5 lacks some of the layers that its recipe names
SD3=(flow_grpo_sd3 "model=random:stable-diffusion-3.5-medium$TWO" objective.kl=0)
FLUX=(flux_80gb "model=random:FLUX.1-dev$ONE")
WAN=(flow_grpo_wan "model=random:Wan2.1-T2V-1.3B$ONE" objective.kl=0 sampler.steps=4)
run_case 90 "${SD3[@]}" offload=false sampler.steps=5
run_case 120 "${SD3[@]}" offload=false sampler.steps=5 pipeline.height=1024 pipeline.width=1024
run_case 120 "${FLUX[@]}" offload=false
run_case 120 "${FLUX[@]}" offload=true train.gradient_checkpointing=true block_offload=true
run_case 150 "${FLUX[@]}" offload=false pipeline.height=1024 pipeline.width=1024
run_case 120 "${WAN[@]}" offload=false
run_case 120 vlm3b_24gb "model=random:Qwen2.5-VL-3B-Instruct$ONE"
exit $FAILED
