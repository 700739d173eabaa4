"""Models in the forms that others read: ONNX files, and folders as Hugging Face keeps them."""
