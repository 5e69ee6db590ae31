"""What stands beside the tokens of a ComfyUI conditioning, by its key: text that is guarded, words that nothing can
guard, or no text. What is none of those and could hold text is refused by name, so that a new family cannot leak.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch

from ..saferegion.core.errors import ConditioningError

POOLED = "pooled_output"
CONTROLNET = ("cross_attn_controlnet", "pooled_output_controlnet")
GLIGEN = "gligen"
REFERENCE = "reference_latents_text_embeds"
POSE = "cross_attn_pose"
PREFIX = "conditioning_"
MASK = "attention_mask"
LYRICS = "conditioning_lyrics"
"""Song lyrics: token ids (ACE-Step 1), of which the family says what they are, or embeddings (1.5)."""

TEXT = frozenset({"cross_attn", POOLED, *CONTROLNET, GLIGEN, REFERENCE, POSE})
"""Text that is guarded; keys that begin with :data:`PREFIX` are too, or refused by the family."""

WORDS = {
    "t5xxl_ids": "the numbers of the words",
    "t5xxl_weights": "the weights of the words",
    "text_input_ids": "the numbers of the words",
    "audio_codes": "audio codes that a language model has made of the words",
    LYRICS: "embeddings of song lyrics",
}
"""What carries words past every embedding, and what it is."""

NO_TEXT = frozenset(
    """
    aesthetic_score area aspect_ratio audio_embed audio_inject_scale augmentation_level azimuth batch_index
    camera_conditions clip_end_percent clip_start_percent clip_vision_output clip_vision_output_pose
    clip_vision_output_ref clip_vision_outputs concat_image concat_latent_image concat_mask concat_mask_index
    condition conditioning_scale context_latents control control_apply_to_uncond control_video crop_h crop_w default
    degrade_sigma denoise_mask driving_mask_28ch elevation end_percent face_video_pixels fps frame_rate
    generated_keyframes guidance guide_attention_entries guiding_frame_index height hooks keyframe_idxs latent_image
    latent_shapes lq_latent lyrics_strength mask mask_strength minimax_audio_cond_noise_aug minimax_keyframes
    minimax_refs minimax_token_tags minimax_visual_cond_noise_aug model_conds motion_bucket_id noise
    noise_augmentation noise_concat noise_mask ofs pose_strength pose_video_latent prompt_type ref_audio ref_latent
    ref_mask_28ch ref_mask_flag reference_audio_timbre_latents reference_latents reference_latents_method
    reference_motion reference_strength seconds_start seconds_total seed set_area_to_bounds stable_cascade_prior
    start_percent strength target_height target_width time_conditioning time_dim_concat time_dim_replace timestep_end
    timestep_start unclip_conditioning unclip_noise_augment_merge unprocessed_ltxav_embeds uuid vace_frames vace_mask
    vace_strength width
    """.split()  # noqa: SIM905
)
"""Keys of ComfyUI's own nodes and models that hold pictures, sounds, places, times and numbers."""

_DEEPEST = 4


def refuse_unknown(options: Mapping[str, Any]) -> None:
    """Raise ConditioningError where some key carries words that cannot be guarded, or what nobody here knows."""
    for key, value in options.items():
        sung = key != LYRICS or (isinstance(value, torch.Tensor) and value.is_floating_point())
        if key in WORDS and sung and _holds(value):
            raise ConditioningError(
                f"This model is given text as '{key}' too ({WORDS[key]}), which cannot be guarded yet: take the guard "
                "out, or use another model."
            )
        known = key in TEXT or key in NO_TEXT or key in WORDS or key.startswith((PREFIX, MASK))
        if not known and _holds(value):
            raise ConditioningError(
                f"This conditioning carries '{key}', which may be text and which this version of Safe Region does not "
                "know, so it cannot be guarded yet: update Safe Region, or take out the node that adds it."
            )


def _holds(value: Any, depth: int = 0) -> bool:
    """Whether there are tensors, arrays or lists of numbers in it, which text could be."""
    if isinstance(value, torch.Tensor) or hasattr(value, "__array_interface__"):
        return True
    if isinstance(value, Mapping):
        value = list(value.values())
    if not isinstance(value, list | tuple | set | frozenset) or depth >= _DEEPEST:
        return depth >= _DEEPEST
    numbers = [v for v in value if isinstance(v, int) and not isinstance(v, bool)]
    return len(numbers) > 1 or any(_holds(v, depth + 1) for v in value)
