"""The IOMMU: whether the kernel uses one, and which devices are for guests."""

import glob
import os
from typing import Any, Dict, List

from . import files


def look(sys: str = "/sys") -> Dict[str, Any]:
    groups = {
        os.path.basename(os.path.realpath(device + "/iommu_group"))
        for device in glob.glob(sys + "/bus/pci/drivers/*vfio*/????:*")
        if os.path.exists(device + "/iommu_group")
    }
    return {
        "units": len(glob.glob(sys + "/class/iommu/*")),
        "groups": len(glob.glob(sys + "/kernel/iommu_groups/*")),
        "handed_out": {name: members("{}/kernel/iommu_groups/{}".format(sys, name)) for name in groups},
    }


def members(group: str) -> List[str]:
    """ "ADDRESS DRIVER" of the devices in a group. Bridges may stay with the host, so they are left out."""
    devices = sorted(glob.glob(group + "/devices/*"))
    return [
        "{} {}".format(os.path.basename(path), driver(path)).strip()
        for path in devices
        if not files.text(path + "/class").startswith("0x0604")
    ]


def driver(device: str) -> str:
    return os.path.basename(os.path.realpath(device + "/driver")) if os.path.exists(device + "/driver") else ""
