"""Live producers: what goes on in the worktrees, looked at and told."""
