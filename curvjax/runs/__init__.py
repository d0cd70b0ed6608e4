"""The commands as plain functions: each reads and writes durable records."""
