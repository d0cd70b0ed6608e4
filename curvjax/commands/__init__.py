"""The subcommands of `curvjax`. Each is its arguments, derived from the values' own fields, and a call."""
