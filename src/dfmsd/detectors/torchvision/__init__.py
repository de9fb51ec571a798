"""torchvision's detectors, and those made of their parts, behind the contract."""
