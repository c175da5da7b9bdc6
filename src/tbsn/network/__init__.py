"""The networks (needs torch): the blind-spot transformer and the student U-Net."""

from tbsn.network.tbsn import TBSN, TBSNConfig
from tbsn.network.unet import UNet, UNetConfig

__all__ = ["TBSN", "TBSNConfig", "UNet", "UNetConfig"]
