"""Models as files: numbers in safetensors, their meaning in JSON."""
