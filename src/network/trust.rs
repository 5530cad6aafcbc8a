//! `AWS_CA_BUNDLE` and `ca_bundle`: the certificates that count in place of those of the machine, as in AWS's own tools.

use std::path::Path;

use rustls::RootCertStore;
use rustls::pki_types::CertificateDer;
use rustls::pki_types::pem::PemObject as _;

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD as BASE64;

/// Certificates of a file.
#[derive(Debug, Clone)]
pub(crate) struct Bundle {
    certificates: Vec<CertificateDer<'static>>,
}

impl Bundle {
    /// Reads a PEM file that `named_by` (a variable or a profile) names. Certificates that cannot be used are passed over, as
    /// copies of a system's store have them.
    ///
    /// # Errors
    /// A sentence, if the file cannot be read or has no certificate.
    pub(crate) fn read(named_by: &str, path: &Path) -> Result<Self, String> {
        let failed = |why: &str| format!("{named_by} names the file {}, which {why}", path.display());
        let pem = std::fs::read(path).map_err(|error| failed(&format!("cannot be read: {error}")))?;
        let mut store = RootCertStore::empty();
        let usable = |certificate: &CertificateDer<'static>| store.add(certificate.clone()).is_ok();
        let certificates: Vec<_> = CertificateDer::pem_slice_iter(&pem).filter_map(Result::ok).filter(usable).collect();
        match certificates.is_empty() {
            true => Err(failed("has no CA certificate in PEM form")),
            false => Ok(Self { certificates }),
        }
    }

    pub(crate) fn certificates(&self) -> &[CertificateDer<'static>] {
        &self.certificates
    }

    /// The same as PEM, for the SDK, which panics on what it cannot read.
    pub(crate) fn pem(&self) -> String {
        let mut pem = String::new();
        for certificate in &self.certificates {
            pem.push_str("-----BEGIN CERTIFICATE-----\n");
            let text = BASE64.encode(certificate);
            let mut rest = text.as_str();
            while !rest.is_empty() {
                let (line, behind) = rest.split_at(rest.len().min(64));
                pem.push_str(line);
                pem.push('\n');
                rest = behind;
            }
            pem.push_str("-----END CERTIFICATE-----\n");
        }
        pem
    }
}
