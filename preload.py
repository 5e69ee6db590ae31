"""Command-line flags of the operator's policy are added here; this version has none."""


def preload(parser):
    """Called by the webui while it reads its command line, before anything else of this extension."""
