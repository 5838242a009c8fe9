"""A trained network as a file to deploy: .pt2, .onnx or .safetensors, checked, with a model card beside it."""

#: The line above the code that loads an exported file.
LOADING = "Load it without mfh:"
