"""The YAML file, read strictly."""
