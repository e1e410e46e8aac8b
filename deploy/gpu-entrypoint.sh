#!/bin/sh
# Build an engine of TINYDET_MODEL for this GPU if the volume has none, then run `tinydet serve` with it.
#
#   TINYDET_MODEL     an ONNX file, or the name of a bundled model (default: thermal)
#   TINYDET_ENGINES   folder of the engines (default: /engines)
#   TINYDET_BUILD     options of `tinydet export engine`, such as "--precision fp32 --batch 1,8,32"
#
# An engine runs only with the TensorRT and on the GPU that built it, so each combination has a folder.
set -eu

model=${TINYDET_MODEL:-thermal}
if [ -f "$model" ]; then
    hash=$(sha256sum "$model" | cut -c1-16)
else
    hash=$model-$(tinydet --version | tr -c 'A-Za-z0-9.\n' -)
fi
gpu=$(nvidia-smi --query-gpu=name --format=csv,noheader | head -n 1 | tr -c 'A-Za-z0-9.\n' -)
tensorrt=$(python -c 'import tensorrt; print(tensorrt.__version__)')
options=$(printf '%s' "${TINYDET_BUILD:-}" | sha256sum | cut -c1-8)
folder=${TINYDET_ENGINES:-/engines}/$hash.$gpu.$tensorrt.$options

if [ ! -f "$folder/model.json" ]; then # written after model.engine, so both are complete
    mkdir -p "$folder"
    # shellcheck disable=SC2086 # several options
    tinydet export engine "$model" --target tensorrt --output "$folder/model.engine" ${TINYDET_BUILD:-}
fi
exec tinydet serve --model "$folder/model.engine" "$@"
