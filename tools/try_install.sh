#!/usr/bin/env bash
# Installs difftop into fresh environments, tries it there, and prints a Markdown table: what docs/install.md shows.
#
#   tools/try_install.sh                                      the rows below
#   tools/try_install.sh 3.12,2.4.6,2.14.1,pip,dmc+gym ...    rows of your own: Python,NumPy,torch,way,extras
#
# "-" lets the installer choose that version, and as extras means none. Ways: pip (pip install .), editable (-e .), wheel, sdist, uv-pip
# (uv pip install .), uv-sync. The extra "theseus" stands for Theseus' own line. python3.X must be on the PATH, and uv for its rows; what
# pip and uv are told by their environment variables (PIP_FIND_LINKS, UV_FIND_LINKS, ...) holds. Each environment is in a temporary
# folder (TMPDIR) and is deleted after its row; a row costs 1 to 6 GB there while it lasts. Logs of rows that failed: $LOGS.
set -uo pipefail

rows=(
    3.11,1.26.4,2.13.0,pip,-
    3.11,1.26.4,2.13.0,editable,dmc+gym+metaworld+theseus
    3.11,2.4.6,2.13.0,wheel,dmc+gym+metaworld
    3.11,-,2.8.0,pip,-
    3.11,2.4.6,2.14.1,sdist,dmc
    3.12,1.26.4,2.14.1,pip,dmc+gym
    3.13,2.4.6,2.14.1,wheel,dmc+gym+metaworld
    3.11,-,-,uv-pip,gym
    3.12,-,-,uv-sync,dmc+theseus
)
[ $# -gt 0 ] && rows=("$@")
root=$(cd "$(dirname "$0")/.." && pwd)
base=$(mktemp -d)
logs=${LOGS:-$base/logs}
mkdir -p "$logs"
trap 'rm -rf "$base/row" "$base/source"; rmdir "$logs" "$base" 2>/dev/null; true' EXIT
unset PYTHONPATH VIRTUAL_ENV

theseus="theseus-ai torchlie torchkin urdf-parser-py semantic-version lxml pyyaml"
pip_line() { "$base/row/env/bin/python" -m pip install -q -c "$base/row/pins" "$@"; }
uv_line() { uv pip install -q --python "$base/row/env/bin/python" -c "$base/row/pins" "$@"; }

# What users can't do without: the files that git knows, or that are new and not ignored, as a clone has them.
copy_source() {
    rm -rf "$base/source" && mkdir "$base/source" && cd "$root" || return 1
    { git ls-files --cached --others --exclude-standard 2>/dev/null || find . -type f; } |
        while read -r file; do [ ! -e "$file" ] || echo "$file"; done | tar c -T - | tar x -C "$base/source"
}

install_row() { # python way extras
    local python=$1 way=$2 extras=$3 listed env=$base/row/env
    listed=$(echo "$extras" | tr + '\n' | grep -vx -e theseus -e - | paste -sd, -)
    local suffix=${listed:+[$listed]}
    cd "$base/source" || return 1
    case $way in
        uv-sync)
            local arguments=() name
            for name in ${listed//,/ }; do arguments+=(--extra "$name"); done
            [[ $extras != *theseus* ]] || arguments+=(--group theseus)
            while read -r name; do arguments+=(--upgrade-package "$name"); done <"$base/row/pins"
            UV_PROJECT_ENVIRONMENT=$env uv sync -q --python "$python" "${arguments[@]}"
            return ;;
        uv-pip) uv venv -q --python "$python" "$env" && uv_line ".$suffix" || return 1 ;;
        pip | editable | wheel | sdist)
            "$python" -m venv "$env" || return 1
            case $way in
                pip) pip_line ".$suffix" ;;
                editable) pip_line -e ".$suffix" ;;
                wheel) "$env/bin/python" -m pip wheel -q --no-deps -w dist . && pip_line "$(echo "$PWD"/dist/*.whl)$suffix" ;;
                sdist)
                    pip_line 'setuptools>=77' wheel &&
                        "$env/bin/python" -c 'from setuptools.build_meta import build_sdist; build_sdist("dist")' &&
                        pip_line "$(echo "$PWD"/dist/*.tar.gz)$suffix" ;;
            esac || return 1
            if [[ $extras == *dmc* ]]; then pip_line --no-deps 'dm-control>=1.0.41,<1.0.42' || return 1; fi
            if [[ $extras == *theseus* ]]; then
                pip_line 'setuptools<81' wheel numpy scipy && pip_line --no-build-isolation --no-deps $theseus || return 1
            fi ;;
        *) echo "unknown way $way: pip, editable, wheel, sdist, uv-pip or uv-sync" && return 1 ;;
    esac
}

# Outside the source tree, so that nothing is found in it by accident: the imports, an episode's first step on each simulator, and the
# command, which trains a toy.
smoke() { # extras
    local bin=$base/row/env/bin extra code name
    mkdir -p "$base/row/elsewhere" && cd "$base/row/elsewhere" || return 1
    "$bin/python" - <<'EOF' || return 1
import sys

import torch

import agents.registry
import difftop
import envs
from difftop.nn.two_hot import symexp
from difftop.run.config_folder import config_folder

assert len(list(config_folder().rglob("*.yaml"))) > 10
assert "theseus" not in sys.modules
x = torch.zeros(1, requires_grad=True)
symexp(x).backward()
assert x.grad == 1
EOF
    for extra in ${1//+/ }; do
        case $extra in
            dmc) name="dmc/cartpole-swingup dmc/walker-walk" ;;
            gym) name="gym/HalfCheetah-v5 gym/Pendulum-v1 gym/BipedalWalker-v3" ;;
            metaworld) name=metaworld/reach ;;
            pusht) name=pusht/push-t ;;
            robosuite) name=robosuite/Lift ;;
            maniskill) name=maniskill/PickCube-v1 ;;
            theseus) "$bin/python" -W ignore -c "import theseus, difftop.planning.theseus_lm" || return 1 && continue ;;
            *) continue ;;
        esac
        code="import difftop
for name in '$name'.split():
    env = difftop.make_env(name)
    env.reset(seed=1)
    env.step(env.action_space.sample())"
        "$bin/python" -c "$code" || return 1
    done
    "$bin/difftop" --help >help.txt && grep -q agent= help.txt &&
        "$bin/difftop" agent=tdmpc planner=none env=toy/point-mass preset=cpu run.frames=60 run.seed_steps=20 run.batch_size=32 \
            run.eval_episodes=1 run.video=false device=cpu && find runs -name eval.csv | grep -q .
}

echo "| Python | NumPy | torch | way | extras | seconds | MB | result |"
echo "|---|---|---|---|---|---|---|---|"
failed=0
for row in "${rows[@]}"; do
    IFS=, read -r version numpy torch way extras <<<"$row"
    log=$logs/${row//[,+]/_}.log
    mkdir -p "$base/row" && : >"$base/row/pins"
    [ "$numpy" = - ] || echo "numpy==$numpy" >>"$base/row/pins"
    [ "$torch" = - ] || echo "torch==$torch" >>"$base/row/pins"
    begun=$SECONDS
    if ! python=$(python"$version" -c 'import sys; print(sys.executable)' 2>>"$log"); then
        result="no python$version here"
    elif ! copy_source >>"$log" 2>&1 || ! (install_row "$python" "$way" "$extras") >>"$log" 2>&1; then
        result="installation failed"
    elif ! (smoke "$extras") >>"$log" 2>&1; then
        result="installed; does not run"
    else
        result=works
    fi
    seconds=$((SECONDS - begun))
    read -r numpy torch < <("$base/row/env/bin/python" -c 'from importlib.metadata import version as v; print(v("numpy"), v("torch"))' 2>/dev/null ||
        echo "$numpy $torch")
    size=$(du -sm "$base/row/env" 2>/dev/null | cut -f1)
    echo "| $version | $numpy | $torch | $way | ${extras//+/, } | $seconds | ${size:-0} | $result |"
    if [ "$result" = works ]; then rm -f "$log"; else failed=1 && echo "$row: $result: $log" >&2; fi
    rm -rf "$base/row" "$base/source"
done
exit $failed
