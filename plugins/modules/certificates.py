"""Gives a host certificates for libvirt and QEMU, signed on the controller. The work is in plugins/action."""

from __future__ import annotations

DOCUMENTATION = """
module: certificates
short_description: Gives a host certificates for libvirt and QEMU, signed on the controller
description:
  - The host makes its keys, the controller signs with the key of the fleet's CA, and the certificates go to where
    libvirt and QEMU look for them. One task does all of it, and asks the host once when there is nothing to do.
  - A certificate is renewed in the last third of its life, and when its names, its key or the CA are others.
  - A daemon that listens reads new certificates without a restart.
author:
  - kvmfleet developers (@kvmfleet)
options:
  state:
    description: V(absent) gives back what was there before.
    type: str
    choices: [present, absent]
    default: present
  examine:
    description: Whether to only fail where C(present) could not work. Changes nothing.
    type: bool
    default: false
  stores:
    description: The places of certificates with one key, one entry for each program that uses them.
    type: list
    elements: dict
    required: true
    suboptions:
      name:
        description: What the store is for. It is the organizational unit in the certificate's subject.
        type: str
        required: true
      ca:
        description: Where certificates of the CA go.
        type: list
        elements: str
        required: true
      certificate:
        description: Where the certificate goes.
        type: list
        elements: str
        required: true
      key:
        description: Where the key goes.
        type: list
        elements: str
        required: true
      owner:
        description: Who may read the keys.
        type: str
        default: root
  names:
    description: Names and addresses that the certificates are for.
    type: list
    elements: str
    required: true
  pki:
    description: The controller's folder with the CA, which C(kvmfleet pki init) makes.
    type: path
    default: ""
  passphrase:
    description: Of the CA's key.
    type: str
    default: ""
  days:
    description: How long new certificates are valid.
    type: int
    default: 365
  rotate:
    description: Whether to make new keys and certificates although the old ones are good.
    type: bool
    default: false
  source:
    description:
      - Files of the host with a certificate of somebody else's, with the keys C(ca), C(certificate) and C(key). They
        are copied instead of anything being signed.
    type: dict
    default: {}
"""

EXAMPLES = """
- name: Have certificates
  kvmfleet.host.certificates:
    pki: ~/.local/state/kvmfleet/pki
    names: [hv1.example.com, 192.0.2.11]
    stores:
      - name: libvirt
        ca: [/etc/pki/CA/cacert.pem]
        certificate: [/etc/pki/libvirt/servercert.pem, /etc/pki/libvirt/clientcert.pem]
        key: [/etc/pki/libvirt/private/serverkey.pem, /etc/pki/libvirt/private/clientkey.pem]
"""

RETURN = """
renewed:
  description: Name of a store to why its certificate is new.
  returned: success
  type: dict
"""
