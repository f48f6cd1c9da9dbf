#!/usr/bin/env bash
# A Ray head and an MLflow server on this machine, until Ctrl-C. Everything listens on loopback only.
#
#   cluster/local/up.sh [options of `ray start`, e.g. --num-gpus 1]
#
# Other ports: RAY_PORT, RAY_DASHBOARD_PORT, MLFLOW_PORT.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/../.."

RAY_PORT="${RAY_PORT:-6379}"
RAY_DASHBOARD_PORT="${RAY_DASHBOARD_PORT:-8265}"
MLFLOW_PORT="${MLFLOW_PORT:-5000}"
HOME_FOLDER="${DREAMFLEET_HOME:-$HOME/.dreamfleet}"
DASHBOARD="http://127.0.0.1:$RAY_DASHBOARD_PORT"

# Jobs run with the `python` that the head finds first.
[ -x .venv/bin/ray ] && export PATH="$PWD/.venv/bin:$PATH"
command -v ray >/dev/null || { echo "error: no ray; run 'make install' first" >&2; exit 1; }

export RAY_AUTH_MODE=token RAY_USAGE_STATS_ENABLED=0
export RAY_JOB_STOP_WAIT_TIME_S=90            # a stopped job may write its last checkpoint
export RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER=0    # makes Ray take 127.0.0.1 as its node address
export RAY_worker_niceness=0                  # its user waits for it, so it gives way to nobody
export MLFLOW_TRACKING_URI="http://127.0.0.1:$MLFLOW_PORT"
export MLFLOW_SERVER_ENABLE_JOB_EXECUTION=false MLFLOW_DISABLE_TELEMETRY=true
(umask 077; ray get-auth-token --generate >/dev/null)
mkdir -p "$HOME_FOLDER"

children=()
end() {
  trap - EXIT INT TERM
  for child in "${children[@]}"; do kill "$child" 2>/dev/null || true; done
  for child in "${children[@]}"; do wait "$child" 2>/dev/null || true; done
}
trap end EXIT
trap 'exit 130' INT
trap 'exit 143' TERM

# The database that private runs use too, so all runs are in one place.
mlflow server --host 127.0.0.1 --port "$MLFLOW_PORT" --workers 1 \
  --backend-store-uri "sqlite:///$HOME_FOLDER/mlflow.db" \
  --artifacts-destination "$HOME_FOLDER/mlartifacts" >"$HOME_FOLDER/mlflow-server.log" 2>&1 &
children+=($!)
ray start --head --block --port "$RAY_PORT" --dashboard-host 127.0.0.1 \
  --dashboard-port "$RAY_DASHBOARD_PORT" "$@" >"$HOME_FOLDER/ray-head.log" 2>&1 &
children+=($!)

answers() { python -c "import urllib.request as u; u.urlopen('$1', timeout=5)" 2>/dev/null; }
for place in "$DASHBOARD/api/gcs_healthz" "$MLFLOW_TRACKING_URI/health"; do
  until answers "$place"; do
    for child in "${children[@]}"; do
      kill -0 "$child" 2>/dev/null \
        || { echo "error: a server ended; see $HOME_FOLDER/ray-head.log, mlflow-server.log" >&2; exit 1; }
    done
    sleep 1
  done
done

cat <<TEXT
ready: Ray at $DASHBOARD, MLflow at $MLFLOW_TRACKING_URI
In another terminal, in the same folder:
  . .venv/bin/activate
  export RAY_API_SERVER_ADDRESS=$DASHBOARD
  dreamfleet submit personalize --config examples/recipes/dog.yaml --output-dir "\$HOME/biscuit"
Ctrl-C ends both servers.
TEXT
wait -n "${children[@]}"
