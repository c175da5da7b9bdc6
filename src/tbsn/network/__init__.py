"""The networks (needs torch): the blind-spot transformer, the network with a hole, and the two students."""

from tbsn.network.fast import FastUNet, FastUNetConfig
from tbsn.network.half_plane import HalfPlane, HalfPlaneConfig
from tbsn.network.tbsn import TBSN, TBSNConfig
from tbsn.network.unet import UNet, UNetConfig

__all__ = ["TBSN", "FastUNet", "FastUNetConfig", "HalfPlane", "HalfPlaneConfig", "TBSNConfig", "UNet", "UNetConfig"]
