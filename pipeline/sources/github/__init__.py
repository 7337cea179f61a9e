"""GitHub: the pull requests and checks of followed branches."""

from pipeline.sources.github.poller import GitHub

__all__ = ["GitHub"]
