"""Adds the flag of the operator's policy to the command line of the webui."""


def preload(parser):
    """Called by the webui while it reads its command line, before anything else of this extension."""
    parser.add_argument(
        "--safe-region-policy",
        metavar="FILE",
        default=None,
        help="What this host keeps out, for everybody (see docs/operators.md of Safe Region).",
    )
