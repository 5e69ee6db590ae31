"""The ComfyUI adapter: nodes over the host-independent core. No mathematics here."""

from __future__ import annotations

from . import files, policy_door
from .nodes_balance import BalancePeople
from .nodes_discover import DiscoverDirection
from .nodes_guard import GuardCLIP, GuardConditioning, GuardModel, Inspect
from .nodes_one import SafeRegionGuard
from .nodes_region import ConceptFromWords, LoadDirections, SafeRegionNode, SaveDirections

files.register()
policy_door.start()

NODE_CLASS_MAPPINGS = {
    "SafeRegionGuard": SafeRegionGuard,
    "SafeRegion": SafeRegionNode,
    "SafeRegionGuardCLIP": GuardCLIP,
    "SafeRegionGuardModel": GuardModel,
    "SafeRegionGuardConditioning": GuardConditioning,
    "SafeRegionConceptFromWords": ConceptFromWords,
    "SafeRegionLoadDirections": LoadDirections,
    "SafeRegionSaveDirections": SaveDirections,
    "SafeRegionInspect": Inspect,
    "SafeRegionDiscover": DiscoverDirection,
    "SafeRegionBalance": BalancePeople,
}

NODE_DISPLAY_NAME_MAPPINGS = {
    "SafeRegionGuard": "Safe Region",
    "SafeRegion": "Choose Concept",
    "SafeRegionGuardCLIP": "Guard CLIP",
    "SafeRegionGuardModel": "Guard Model",
    "SafeRegionGuardConditioning": "Guard Conditioning",
    "SafeRegionConceptFromWords": "Concept from Words",
    "SafeRegionLoadDirections": "Load Directions",
    "SafeRegionSaveDirections": "Save Directions",
    "SafeRegionInspect": "Inspect",
    "SafeRegionDiscover": "Discover Direction",
    "SafeRegionBalance": "Balance",
}
