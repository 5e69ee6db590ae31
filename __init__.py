"""ComfyUI's door. Other programs that happen to import this folder find an empty package."""

from importlib.util import find_spec
from os import _exit, environ
from sys import stderr

NODE_CLASS_MAPPINGS: dict = {}
NODE_DISPLAY_NAME_MAPPINGS: dict = {}
WEB_DIRECTORY = "./web"

if find_spec("folder_paths") is not None and find_spec("comfy") is not None:
    try:
        from .nodes import NODE_CLASS_MAPPINGS, NODE_DISPLAY_NAME_MAPPINGS
    except Exception as error:  # the host would go on without; under an operator's policy it must not
        if "SAFE_REGION_POLICY" in environ:
            print(
                f"Safe Region: the policy is not in force, so ComfyUI does not start: {error}", file=stderr, flush=True
            )
            _exit(1)  # other threads would keep the host alive
        raise

__all__ = ["NODE_CLASS_MAPPINGS", "NODE_DISPLAY_NAME_MAPPINGS", "WEB_DIRECTORY"]
