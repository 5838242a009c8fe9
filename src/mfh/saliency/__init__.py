"""Which channels of a teacher can cross (Algorithm 1, step 2, and the probe), and the masks made from that."""

from mfh.saliency.masks import ChannelMask, FocusedTeacher, mask_channels
from mfh.saliency.scores import ChannelSaliency, channel_saliency, soft_weights

__all__ = ["ChannelMask", "ChannelSaliency", "FocusedTeacher", "channel_saliency", "mask_channels", "soft_weights"]
