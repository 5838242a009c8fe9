"""A trained network as a file to deploy: .pt2, .onnx or .safetensors, checked, with a model card beside it."""
