"""Which teacher channels carry information that the student's modality has too, and masks made from such scores."""

from mfh.saliency.masks import ChannelMask, FocusedTeacher, mask_channels
from mfh.saliency.scores import ChannelSaliency, channel_saliency, soft_weights

__all__ = ["ChannelMask", "ChannelSaliency", "FocusedTeacher", "channel_saliency", "mask_channels", "soft_weights"]
