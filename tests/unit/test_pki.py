"""The fleet's CA: made once, signing for hosts, and judging what they have."""

from __future__ import annotations

import datetime
import json
import os
from pathlib import Path
from typing import Any

import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec, rsa
from cryptography.x509.oid import NameOID

from orchestrator import pki
from orchestrator.errors import PkiError
from orchestrator.report import pki as report
from plugins.plugin_utils import certificates

NAMES = ["hv1.example.com", "192.0.2.11", "2001:db8::1"]
DAY = datetime.timedelta(days=1)
PEM = serialization.Encoding.PEM


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    pki.init(tmp_path / "pki")
    return tmp_path / "pki"


@pytest.fixture
def authority(folder: Path) -> Any:
    return certificates.Authority(str(folder))


def request(key: Any = None, name: str = "anything") -> str:
    key = key or ec.generate_private_key(ec.SECP256R1())
    asked = x509.CertificateSigningRequestBuilder().subject_name(
        x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, name)])
    )
    return asked.sign(key, hashes.SHA256()).public_bytes(PEM).decode()


def now() -> datetime.datetime:
    return datetime.datetime.now(datetime.UTC)


def test_only_its_owner_can_read_the_key(folder: Path) -> None:
    assert os.stat(folder).st_mode & 0o777 == 0o700
    assert os.stat(folder / "ca.key").st_mode & 0o777 == 0o600
    assert pki.status(folder).private
    assert sorted(path.name for path in folder.parent.iterdir()) == ["pki"]


def test_a_second_ca_does_not_replace_the_first(folder: Path) -> None:
    before = (folder / "ca.key").read_bytes()
    with pytest.raises(PkiError, match="there is a CA already"):
        pki.init(folder)
    assert (folder / "ca.key").read_bytes() == before


def test_a_ca_that_cannot_be_kept_leaves_no_key_behind(tmp_path: Path) -> None:
    (tmp_path / "pki").mkdir()
    (tmp_path / "pki" / "notes.txt").touch()
    with pytest.raises(PkiError, match="Directory not empty"):
        pki.init(tmp_path / "pki")
    assert [path.name for path in tmp_path.iterdir()] == ["pki"]


def test_a_ca_that_is_not_there_says_how_to_make_one(tmp_path: Path) -> None:
    with pytest.raises(PkiError) as told:
        pki.status(tmp_path / "none")
    assert "kvmfleet pki init" in told.value.hint
    with pytest.raises(certificates.PkiError, match="kvmfleet pki init"):
        certificates.Authority(str(tmp_path / "none"))


def test_a_passphrase_protects_the_key(tmp_path: Path) -> None:
    assert pki.init(tmp_path / "pki", passphrase="correct horse").encrypted
    folder = str(tmp_path / "pki")
    certificates.Authority(folder, "correct horse")
    with pytest.raises(certificates.PkiError, match="set libvirt_remote_ca_passphrase"):
        certificates.Authority(folder)
    with pytest.raises(certificates.PkiError, match="wrong passphrase"):
        certificates.Authority(folder, "battery staple")


def test_a_passphrase_for_a_key_that_has_none_is_refused(folder: Path) -> None:
    with pytest.raises(certificates.PkiError, match="has no passphrase"):
        certificates.Authority(str(folder), "correct horse")


def test_a_key_that_others_can_read_signs_nothing(folder: Path) -> None:
    (folder / "ca.key").chmod(0o640)
    with pytest.raises(certificates.PkiError, match="who could sign with it"):
        certificates.Authority(str(folder))
    assert not pki.status(folder).private


def test_the_key_of_another_ca_signs_nothing(folder: Path, tmp_path: Path) -> None:
    pki.init(tmp_path / "other")
    (folder / "ca.key").write_bytes((tmp_path / "other/ca.key").read_bytes())
    with pytest.raises(certificates.PkiError, match="is not the key of"):
        certificates.Authority(str(folder))


def test_what_a_host_asks_for_is_not_what_it_gets(authority: Any) -> None:
    """A host names itself after another one; only its key counts."""
    made = authority.sign(request(name="hv2.example.com"), "hv1.example.com", "libvirt", NAMES, 365)
    found = x509.load_pem_x509_certificate(made.encode())
    assert found.subject.rfc4514_string() == "CN=hv1.example.com,OU=libvirt,O=kvmfleet"
    assert certificates.names_of(found) == sorted(NAMES)
    assert not found.extensions.get_extension_for_class(x509.BasicConstraints).value.ca
    assert certificates.judge(made, authority.pem, NAMES, now(), exactly=True) == ("", False)


def test_what_is_no_request_or_has_a_weak_key_is_refused(authority: Any) -> None:
    for asked in ("", "-----BEGIN NOTHING-----", request(rsa.generate_private_key(65537, 1024))):
        with pytest.raises(certificates.PkiError, match=r"hv1 sent (no|a) certificate request"):
            authority.sign(asked, "hv1", "libvirt", NAMES, 365)


def test_no_certificate_outlives_its_ca(tmp_path: Path) -> None:
    pki.init(tmp_path / "pki", days=10)
    made = certificates.Authority(str(tmp_path / "pki")).sign(request(), "hv1", "libvirt", NAMES, 365)
    assert x509.load_pem_x509_certificate(made.encode()).not_valid_after_utc < now() + 11 * DAY


@pytest.mark.parametrize(
    ("when", "names", "problem"),
    [
        (366 * DAY, NAMES, "expired on"),
        (-DAY, NAMES, "is not valid before"),
        (DAY, [*NAMES, "hv9"], "and not for hv9"),
        (DAY, NAMES[:2], "is also for 2001:db8::1"),
        (DAY, ["2001:DB8:0::1", *NAMES[:2]], ""),
    ],
)
def test_a_judgement_says_what_is_wrong(authority: Any, when: Any, names: list[str], problem: str) -> None:
    made = authority.sign(request(), "hv1", "libvirt", NAMES, 365)
    judgement = certificates.judge(made, authority.pem, names, now() + when, exactly=True)
    assert problem in judgement.problem
    assert bool(problem) == bool(judgement.problem)


def test_the_last_third_of_a_life_is_the_time_to_renew(authority: Any) -> None:
    made = authority.sign(request(), "hv1", "libvirt", NAMES, 30)
    ageing = [certificates.judge(made, authority.pem, NAMES, now() + days * DAY).ageing for days in (1, 19, 21, 29)]
    assert ageing == [False, False, True, True]


def test_a_certificate_of_another_ca_is_told(authority: Any, tmp_path: Path) -> None:
    pki.init(tmp_path / "other")
    other = certificates.Authority(str(tmp_path / "other"))
    made = other.sign(request(), "hv1", "libvirt", NAMES, 365)
    assert "which is not the CA" in certificates.judge(made, authority.pem, NAMES, now()).problem
    both = authority.pem + other.pem
    assert certificates.judge(made, both, NAMES, now()).problem == ""
    assert not authority.issued(made)


def test_a_chain_may_lead_to_the_ca(authority: Any) -> None:
    """As a CA of the user's own often has it: the certificate, then the one that signed it."""
    key, leaf = ec.generate_private_key(ec.SECP256R1()), ec.generate_private_key(ec.SECP256R1())
    root = x509.load_pem_x509_certificate(authority.pem.encode())

    def signed(name: str, public: Any, issuer: Any, by: Any) -> x509.Certificate:
        return (
            x509.CertificateBuilder()
            .subject_name(x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, name)]))
            .issuer_name(issuer)
            .public_key(public)
            .serial_number(1)
            .not_valid_before(now() - DAY)
            .not_valid_after(now() + DAY)
            .add_extension(x509.SubjectAlternativeName([x509.DNSName("hv1")]), critical=False)
            .sign(by, hashes.SHA256())
        )

    between = signed("between", key.public_key(), root.subject, authority._key)
    end = signed("hv1", leaf.public_key(), between.subject, key)
    texts = [certificate.public_bytes(PEM).decode() for certificate in (end, between)]
    assert certificates.judge("".join(texts), authority.pem, ["hv1"], now()).problem == ""
    assert "not the CA" in certificates.judge(texts[0], authority.pem, ["hv1"], now()).problem


def test_what_is_no_certificate_is_told(authority: Any) -> None:
    assert "no certificate" in certificates.judge("nonsense", authority.pem, NAMES, now()).problem


def test_the_status_lists_the_newest_certificate_of_each_host(folder: Path, authority: Any) -> None:
    for host, days in (("hv1", 100), ("hv2", 5), ("hv1", 200)):
        authority.sign(request(), host, "libvirt", NAMES, days)
    with (folder / "issued.jsonl").open("a") as stream:
        stream.write('{"host": "cut o')
    found = pki.status(folder)
    days = [(issued.host, (issued.not_after_s - now().timestamp()) // 86400) for issued in found.issued]
    assert days == [("hv2", 4), ("hv1", 199)]
    assert os.stat(folder / "issued.jsonl").st_mode & 0o777 == 0o600
    assert "PRIVATE" not in json.dumps([str(issued) for issued in found.issued])


def test_a_list_of_certificates_that_cannot_be_read_is_said(folder: Path) -> None:
    (folder / pki.ISSUED).mkdir()
    with pytest.raises(PkiError, match=r"issued\.jsonl: Is a directory"):
        pki.status(folder)


def test_both_halves_look_at_the_same_files() -> None:
    for name in ("CERTIFICATE", "KEY", "ISSUED"):
        assert getattr(pki, name) == getattr(certificates, name)


def test_the_report_says_what_expired(folder: Path, authority: Any) -> None:
    from rich.console import Console

    authority.sign(request(), "hv1", "libvirt", NAMES, 5)
    console = Console(width=160, record=True, file=open(os.devnull, "w"))  # noqa: SIM115
    console.print(report.status(pki.status(folder), now_s=(now() + 6 * DAY).timestamp()))
    console.file.close()
    text = console.export_text()
    assert "EXPIRED on" in text
    assert "key not encrypted" in text
