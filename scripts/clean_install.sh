#!/usr/bin/env bash
# What a stranger does: build the wheel, install it into an empty environment, and work far from the repository.
# Takes a few minutes, most of them for installing torch; nothing in the repository is touched.
set -euo pipefail
root="$(cd "$(dirname "$0")/.." && pwd)"
place="$(mktemp -d)"
trap 'rm -rf "$place"' EXIT
python="${PYTHON:-python3}"

step() { printf '\n== %s ==\n' "$1"; }

step "wheel"
# From a copy, because building leaves folders behind.
mkdir "$place/source"
git -C "$root" ls-files -z | (cd "$root" && xargs -0 -I{} cp --parents {} "$place/source")
"$python" -m venv "$place/env"
"$place/env/bin/python" -m pip wheel --quiet --no-deps --wheel-dir "$place/wheel" "$place/source"
ls "$place/wheel"

step "install"
# torch first and exactly pinned: an open range would pull several GB of accelerator packages.
"$place/env/bin/python" -m pip install --quiet --constraint "$root/constraints.txt" \
  "$(grep '^torch==' "$root/constraints.txt")"
"$place/env/bin/python" -m pip install --quiet --constraint "$root/constraints.txt" "$place"/wheel/*.whl
"$place/env/bin/python" -m pip check

mkdir "$place/work"
cd "$place/work"
export PATH="$place/env/bin:$PATH"
python -c "import mfh, pathlib; assert 'site-packages' in mfh.__file__, mfh.__file__; print('mfh', mfh.__version__)"

step "the demo"
mfh demo --digits --num-seeds 2 --quiet

step "an own task: the guide's, word for word"
python - "$root/docs/own-task.md" <<'PYTHON'
import pathlib, re, sys
text = pathlib.Path(sys.argv[1]).read_text(encoding="utf-8")
pathlib.Path("my_task.py").write_text(re.search(r"<!-- file: my_task.py -->\n```python\n(.*?)```", text, re.S)[1])
PYTHON
mfh study my_task.py --num-seeds 4 --quiet
test -f runs/my_task/report.html

if [ "${1:-}" = "--examples" ]; then
  for example in "$root"/examples/0[1-6]*.py; do
    step "$(basename "$example")"
    python "$example"
  done
  step "07_torchrun.py"
  torchrun --nproc-per-node 2 "$root/examples/07_torchrun.py"
fi
step "done"
