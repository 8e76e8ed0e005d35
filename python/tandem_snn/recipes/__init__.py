"""The recipes that come with the package, a YAML file each."""
