"""Export a trained detector to files that run without torch: ONNX, then a TensorRT engine."""
