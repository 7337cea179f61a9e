"""Starting git, for the workers: the same as for everybody else."""

from pipeline.runtime.spawn import Deadline, Finished, GitError, enclose, full, git, wall

__all__ = ["Deadline", "Finished", "GitError", "enclose", "full", "git", "wall"]
