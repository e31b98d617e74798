"""kvmfleet turns bare Linux machines into KVM hosts and proves each one by executing a guest on it."""

__version__ = "0.1.0"
