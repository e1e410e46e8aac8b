"""From a trained detector to a file that runs without torch: ONNX, then a TensorRT engine."""
