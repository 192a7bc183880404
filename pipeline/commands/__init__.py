"""The commands of `pretrain`, a module a subject. Nothing heavy is imported before a command runs."""
