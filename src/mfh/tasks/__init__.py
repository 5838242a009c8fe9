"""Tasks that ship ready to run: data, networks and a function `task()` each."""
