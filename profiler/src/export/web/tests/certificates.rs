//! Authorities and what they sign.

use rcgen::{
    BasicConstraints, CertificateParams, CertifiedIssuer, DnType, ExtendedKeyUsagePurpose, IsCa,
    KeyPair, SanType, date_time_ymd,
};

/// Signs certificates.
pub(in crate::export) struct Authority(CertifiedIssuer<'static, KeyPair>);

/// A certificate and its key, both in PEM.
pub(in crate::export) struct Signed {
    pub(in crate::export) certificate: String,
    pub(in crate::export) key: String,
}

impl Authority {
    pub(in crate::export) fn new(name: &str) -> Self {
        let mut wanted = CertificateParams::default();
        wanted.distinguished_name.push(DnType::CommonName, name);
        wanted.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
        Self(CertifiedIssuer::self_signed(wanted, KeyPair::generate().unwrap()).unwrap())
    }

    pub(in crate::export) fn pem(&self) -> String {
        self.0.pem()
    }

    /// For `localhost`.
    pub(in crate::export) fn server(&self) -> Signed {
        self.sign(|wanted| wanted.subject_alt_names = vec![dns("localhost")])
    }

    /// For a client.
    pub(in crate::export) fn client(&self, names: Vec<SanType>) -> Signed {
        self.sign(|wanted| wanted.subject_alt_names = names)
    }

    /// The same, which ended long ago.
    pub(in crate::export) fn expired(&self) -> Signed {
        self.sign(|wanted| {
            wanted.subject_alt_names = vec![dns("localhost")];
            wanted.not_after = date_time_ymd(2001, 1, 1);
        })
    }

    fn sign(&self, change: impl FnOnce(&mut CertificateParams)) -> Signed {
        let mut wanted = CertificateParams::default();
        wanted.extended_key_usages = vec![
            ExtendedKeyUsagePurpose::ServerAuth,
            ExtendedKeyUsagePurpose::ClientAuth,
        ];
        change(&mut wanted);
        let key = KeyPair::generate().unwrap();
        Signed {
            certificate: wanted.signed_by(&key, &self.0).unwrap().pem(),
            key: key.serialize_pem(),
        }
    }
}

pub(in crate::export) fn dns(name: &str) -> SanType {
    SanType::DnsName(name.try_into().unwrap())
}
