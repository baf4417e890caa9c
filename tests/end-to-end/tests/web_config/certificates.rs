//! An authority and what it signs, in a folder.

use std::fs;
use std::path::{Path, PathBuf};

use rcgen::{
    BasicConstraints, CertificateParams, CertifiedIssuer, DnType, ExtendedKeyUsagePurpose, IsCa,
    KeyPair, date_time_ymd,
};

/// `ca.pem`, the server's `cert.pem` and `key.pem`, clients' `client.pem`, `foreign.pem` (of another
/// authority) and `expired.pem`, each with its key, and `server-expired.pem` for the server's key.
pub(crate) struct Certificates {
    folder: tempfile::TempDir,
}

impl Certificates {
    pub(crate) fn new() -> Self {
        let certificates = Self {
            folder: tempfile::tempdir().expect("a folder"),
        };
        let (ours, other) = (authority("ours"), authority("other"));
        certificates.write("ca.pem", &ours.pem());
        certificates.write("other-ca.pem", &other.pem());
        let server = key();
        certificates.write("key.pem", &server.serialize_pem());
        certificates.write("cert.pem", &sign(&ours, &server, false));
        certificates.write("server-expired.pem", &sign(&ours, &server, true));
        for (name, authority, is_expired) in [
            ("client.pem", &ours, false),
            ("foreign.pem", &other, false),
            ("expired.pem", &ours, true),
        ] {
            let key = key();
            let signed = sign(authority, &key, is_expired);
            certificates.write(name, &format!("{signed}{}", key.serialize_pem()));
        }
        certificates
    }

    pub(crate) fn folder(&self) -> &Path {
        self.folder.path()
    }

    pub(crate) fn path(&self, name: &str) -> PathBuf {
        self.folder.path().join(name)
    }

    pub(crate) fn read(&self, name: &str) -> String {
        fs::read_to_string(self.path(name)).expect("a file")
    }

    pub(crate) fn write(&self, name: &str, content: &str) {
        fs::write(self.path(name), content).expect("a file");
    }
}

fn key() -> KeyPair {
    KeyPair::generate().expect("a key")
}

fn authority(name: &str) -> CertifiedIssuer<'static, KeyPair> {
    let mut wanted = CertificateParams::default();
    wanted.distinguished_name.push(DnType::CommonName, name);
    wanted.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
    CertifiedIssuer::self_signed(wanted, key()).expect("an authority")
}

fn sign(authority: &CertifiedIssuer<'static, KeyPair>, key: &KeyPair, is_expired: bool) -> String {
    let mut wanted = CertificateParams::new(["localhost".to_owned()]).expect("a name");
    wanted.extended_key_usages = vec![
        ExtendedKeyUsagePurpose::ServerAuth,
        ExtendedKeyUsagePurpose::ClientAuth,
    ];
    if is_expired {
        wanted.not_after = date_time_ymd(2001, 1, 1);
    }
    let signed = wanted.signed_by(key, authority).expect("a certificate");
    signed.pem()
}
