#!/usr/bin/env bash
# The wheel and the source archive are whole: both are built, and the wheel made of the archive is installed alone into an
# empty environment. Its dependencies are read from the environment of the tests, so this takes seconds;
# clean_install.sh installs them too.
set -euo pipefail
unset PYTHONPATH  # it would come before what is installed
root="$(cd "$(dirname "$0")/.." && pwd)"
python="${PYTHON:-$root/.venv/bin/python}"
place="$(mktemp -d)"
trap 'rm -rf "$place"' EXIT

# From a copy of what git knows, because building leaves folders behind.
mkdir "$place/source" "$place/dist" "$place/work"
git -C "$root" ls-files -z | (cd "$root" && xargs -0 -I{} cp --parents {} "$place/source")
(cd "$place/source" && "$python" -c 'import sys; from setuptools import build_meta; build_meta.build_sdist(sys.argv[1])' "$place/dist" > /dev/null)
"$python" -m pip wheel --quiet --no-deps --no-build-isolation --wheel-dir "$place/dist" "$place"/dist/mfh-*.tar.gz
ls "$place/dist"

"$python" -m venv --without-pip "$place/env"
"$python" -m pip --python "$place/env/bin/python" install --quiet --no-deps --no-index "$place"/dist/mfh-*.whl
# The packages of the tests' environment, after those of the new one. Its own path files, the checkout's among them, are not read.
"$python" -c 'import sysconfig; print(sysconfig.get_path("purelib"))' \
  > "$("$place/env/bin/python" -c 'import sysconfig; print(sysconfig.get_path("purelib"))')/tests.pth"
cd "$place/work"
"$place/env/bin/mfh" --version
"$place/env/bin/python" - <<'PYTHON'
import mfh, numpy
assert "env" in mfh.__file__.split("/"), mfh.__file__
made = numpy.random.default_rng(0).normal(size=(2, 90, 4))
task = mfh.Task.from_arrays(teacher=made[0], student=made[1], target=numpy.arange(90) % 3)
result = mfh.study(task, arms=["no-kd", "regular"], num_seeds=1, epochs=1, processes=1, out="run")
mfh.report("run")  # needs the page's template, a file of the package
print("works as installed")
PYTHON
