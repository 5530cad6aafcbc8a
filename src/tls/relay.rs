//! TLS of the relay: towards databases against the RDS root certificates, towards clients with a configured certificate.

use std::path::{Path, PathBuf};
use std::sync::{Arc, LazyLock};

use rustls::pki_types::pem::PemObject as _;
use rustls::pki_types::{CertificateDer, PrivateKeyDer};
use rustls::{ClientConfig, RootCertStore, ServerConfig};
use sha2::{Digest as _, Sha256, Sha384, Sha512};

use crate::tls::provider;
use crate::types::ExtraCa;

/// The root certificates of Amazon RDS, three for each of the 34 commercial and 2 GovCloud regions, and of Amazon Trust
/// Services, which RDS Proxy and Aurora Serverless v1 use. Those of China and of the European Sovereign Cloud are not
/// among them: `docs/configuration.md`.
///
/// The commercial ones are those of AWS's bundle with the SHA-256
/// e5bb2084ccf45087bda1c9bffdea0eb15ee67f0b91646106e466714f9de3c7e3, as the PyPI package awslabs.mysql-mcp-server 1.1.3
/// carries it, without Beta and Preview. The GovCloud ones, one after the other, are the file with the SHA-256
/// 694a8e0f4376f3133dbd76732b7644264c8a8f4c17b66d306cbec18aae58e46a, the roots of AWS's GovCloud bundle. Two public copies of
/// each were compared by fingerprint.
///
/// The text for people is `rds-ca.pem`; the program holds it packed (`zstd --ultra -22`), a tenth of a megabyte less to pull at
/// each start of a task.
static RDS_CA: LazyLock<Vec<u8>> = LazyLock::new(|| {
    let mut pem = Vec::with_capacity(RDS_CA_MAX);
    let unpacked = zstd_safe::decompress(&mut pem, include_bytes!("rds-ca.pem.zst"));
    unpacked.map(|_| pem).unwrap_or_default()
});
const RDS_CA_MAX: usize = 256 * 1024;

/// What libpq announces with `sslnegotiation=direct`, and the server requires then (`PG_ALPN_PROTOCOL` in `pqcomm.h`).
pub(crate) const ALPN_POSTGRESQL: &[u8] = b"postgresql";

/// Where the roots of Amazon Trust Services begin in [`RDS_CA`].
const AWS_ROOTS: &str = "# Amazon Root CA 1";

/// The PEM certificates of Amazon Trust Services, which the endpoints of AWS services and of their VPC endpoints use.
pub(crate) fn aws_roots() -> &'static [u8] {
    let start = RDS_CA.windows(AWS_ROOTS.len()).position(|window| window == AWS_ROOTS.as_bytes());
    start.and_then(|start| RDS_CA.get(start..)).unwrap_or_default()
}

/// A certificate or key file that cannot be used.
#[derive(Debug, thiserror::Error)]
pub(crate) enum TlsConfigError {
    #[error("cannot make the client for AWS services: {0}")]
    AwsClient(String),
    #[error("cannot read {}: {reason}", path.display())]
    File { path: PathBuf, reason: String },
    #[error("{} holds no certificate; it must be a PEM file", .0.display())]
    NoCertificate(PathBuf),
    #[error("extra_ca cannot be used: {0}; it must be the PEM text of one or more certificates")]
    ExtraCa(String),
    #[error("cannot use the certificate: {0}")]
    Rustls(#[from] rustls::Error),
}

/// Random bytes from the crypto provider's generator.
///
/// # Errors
/// When the operating system has none.
pub(crate) fn random<const N: usize>() -> Result<[u8; N], rustls::crypto::GetRandomFailed> {
    let mut bytes = [0; N];
    provider().secure_random.fill(&mut bytes)?;
    Ok(bytes)
}

/// The configuration for connections to databases: TLS 1.2 and 1.3, full verification of chain and name.
///
/// # Errors
/// When `extra_ca` cannot be read or holds no certificate.
pub(crate) fn upstream(extra_ca: &ExtraCa) -> Result<Arc<ClientConfig>, TlsConfigError> {
    client(extra_ca, &RDS_CA)
}

/// The configuration for AWS APIs from the image, which has no trust store: the roots of Amazon Trust Services, which
/// sign the certificates of AWS's endpoints, without those of RDS.
///
/// # Errors
/// As [`upstream`].
pub(crate) fn aws(extra_ca: &ExtraCa) -> Result<Arc<ClientConfig>, TlsConfigError> {
    client(extra_ca, aws_roots())
}

/// The configuration for Vault: its own CA if one is named, otherwise those of [`aws`].
///
/// # Errors
/// As [`upstream`].
pub(crate) fn vault(extra_ca: &ExtraCa, ca_file: Option<&Path>) -> Result<Arc<ClientConfig>, TlsConfigError> {
    match ca_file {
        Some(file) => client(&ExtraCa { file: Some(file.to_owned()), pem: None }, &[]),
        None => client(extra_ca, aws_roots()),
    }
}

fn client(extra_ca: &ExtraCa, pem: &[u8]) -> Result<Arc<ClientConfig>, TlsConfigError> {
    let mut roots = RootCertStore::empty();
    for certificate in CertificateDer::pem_slice_iter(pem).flatten() {
        roots.add(certificate)?;
    }
    for pem in extra_ca_pem(extra_ca)? {
        for certificate in CertificateDer::pem_slice_iter(pem.as_bytes()).flatten() {
            roots.add(certificate)?;
        }
    }
    let config = ClientConfig::builder_with_provider(provider())
        .with_safe_default_protocol_versions()?
        .with_root_certificates(roots)
        .with_no_client_auth();
    Ok(Arc::new(config))
}

/// 256 random bits in hexadecimal digits, from the provider's generator; `None` if it has none to give.
pub(crate) fn random_hex() -> Option<String> {
    let bytes: [u8; 32] = random().ok()?;
    Some(bytes.iter().map(|byte| format!("{byte:02x}")).collect())
}

/// The configuration for clients that ask for TLS on the loopback port, and the channel binding of its certificate.
///
/// # Errors
/// When a file cannot be read or key and certificate do not fit.
pub(crate) fn server(certificate: &Path, key: &Path) -> Result<(Arc<ServerConfig>, Option<Vec<u8>>), TlsConfigError> {
    let chain = certificates(certificate)?;
    let binding = chain.first().and_then(server_end_point);
    let key = PrivateKeyDer::from_pem_file(key)
        .map_err(|error| TlsConfigError::File { path: key.to_owned(), reason: error.to_string() })?;
    let mut config = ServerConfig::builder_with_provider(provider())
        .with_safe_default_protocol_versions()?
        .with_no_client_auth()
        .with_single_cert(chain, key)?;
    config.alpn_protocols = vec![ALPN_POSTGRESQL.to_vec()];
    Ok((Arc::new(config), binding))
}

/// The PEM texts that the configuration adds, its own and its file's; each holds a certificate.
///
/// # Errors
/// When one of them cannot be read or holds no certificate.
pub(crate) fn extra_ca_pem(extra_ca: &ExtraCa) -> Result<Vec<String>, TlsConfigError> {
    let mut all = Vec::new();
    if let Some(path) = &extra_ca.file {
        let pem = std::fs::read_to_string(path)
            .map_err(|error| TlsConfigError::File { path: path.clone(), reason: error.to_string() })?;
        pem_certificates(&pem).map_err(|_| TlsConfigError::NoCertificate(path.clone()))?;
        all.push(pem);
    }
    if let Some(pem) = &extra_ca.pem {
        pem_certificates(pem).map_err(TlsConfigError::ExtraCa)?;
        all.push(pem.clone());
    }
    Ok(all)
}

/// The certificates of a PEM text; at least one.
///
/// # Errors
/// What is wrong with the text.
pub(crate) fn pem_certificates(pem: &str) -> Result<Vec<CertificateDer<'static>>, String> {
    let all: Vec<_> =
        CertificateDer::pem_slice_iter(pem.as_bytes()).collect::<Result<_, _>>().map_err(|error| error.to_string())?;
    match all.as_slice() {
        [] => Err("it holds no certificate".to_owned()),
        _ => Ok(all),
    }
}

fn certificates(path: &Path) -> Result<Vec<CertificateDer<'static>>, TlsConfigError> {
    let unreadable = |error: rustls::pki_types::pem::Error| TlsConfigError::File {
        path: path.to_owned(),
        reason: error.to_string(),
    };
    let all: Vec<_> =
        CertificateDer::pem_file_iter(path).map_err(unreadable)?.collect::<Result<_, _>>().map_err(unreadable)?;
    if all.is_empty() { Err(TlsConfigError::NoCertificate(path.to_owned())) } else { Ok(all) }
}

/// The `tls-server-end-point` channel binding of a certificate (RFC 5929 section 4.1): its hash with the hash function
/// of its signature, SHA-256 in place of MD5 and SHA-1. `None` where the RFC defines none (Ed25519, PSS).
pub(crate) fn server_end_point(certificate: &CertificateDer<'_>) -> Option<Vec<u8>> {
    let (_, parsed) = x509_parser::parse_x509_certificate(certificate).ok()?;
    let oid = parsed.signature_algorithm.algorithm.to_id_string();
    match oid.as_str() {
        // md5/sha1/sha256WithRSAEncryption, ecdsa-with-SHA1/SHA256
        "1.2.840.113549.1.1.4"
        | "1.2.840.113549.1.1.5"
        | "1.2.840.113549.1.1.11"
        | "1.2.840.10045.4.1"
        | "1.2.840.10045.4.3.2" => Some(Sha256::digest(certificate).to_vec()),
        "1.2.840.113549.1.1.12" | "1.2.840.10045.4.3.3" => Some(Sha384::digest(certificate).to_vec()),
        "1.2.840.113549.1.1.13" | "1.2.840.10045.4.3.4" => Some(Sha512::digest(certificate).to_vec()),
        _ => None,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// The regions of botocore's endpoints.json (1.44.8), partitions aws and aws-us-gov.
    const REGIONS: [&str; 36] = [
        "af-south-1",
        "ap-east-1",
        "ap-east-2",
        "ap-northeast-1",
        "ap-northeast-2",
        "ap-northeast-3",
        "ap-south-1",
        "ap-south-2",
        "ap-southeast-1",
        "ap-southeast-2",
        "ap-southeast-3",
        "ap-southeast-4",
        "ap-southeast-5",
        "ap-southeast-6",
        "ap-southeast-7",
        "ca-central-1",
        "ca-west-1",
        "eu-central-1",
        "eu-central-2",
        "eu-north-1",
        "eu-south-1",
        "eu-south-2",
        "eu-west-1",
        "eu-west-2",
        "eu-west-3",
        "il-central-1",
        "me-central-1",
        "me-south-1",
        "mx-central-1",
        "sa-east-1",
        "us-east-1",
        "us-east-2",
        "us-gov-east-1",
        "us-gov-west-1",
        "us-west-1",
        "us-west-2",
    ];

    #[test]
    fn the_rds_roots_are_all_there_and_far_from_expiry() {
        assert!(*RDS_CA == include_bytes!("rds-ca.pem"), "pack it again: zstd --ultra -22 src/tls/rds-ca.pem");
        let roots: Vec<_> = CertificateDer::pem_slice_iter(&RDS_CA).collect::<Result<_, _>>().unwrap();
        assert_eq!(roots.len(), 113);
        let mut names = Vec::new();
        for root in &roots {
            let (_, parsed) = x509_parser::parse_x509_certificate(root).unwrap();
            // 2035-01-01: renew the file long before the first root ends.
            assert!(parsed.validity().not_after.timestamp() > 2_051_222_400, "{}", parsed.subject());
            assert!(parsed.is_ca(), "{}", parsed.subject());
            names.push(parsed.subject().to_string());
        }
        for region in REGIONS {
            for kind in ["RSA2048", "RSA4096", "ECC384"] {
                let wanted = format!("CN=Amazon RDS {region} Root CA {kind} G1");
                assert_eq!(names.iter().filter(|name| name.contains(&wanted)).count(), 1, "{wanted}");
            }
        }
        // And no other region's: what is missing in docs/configuration.md is missing here.
        assert_eq!(REGIONS.len() * 3 + 5, roots.len());
        assert!(upstream(&ExtraCa::default()).is_ok());
    }

    #[test]
    fn random_text_is_long_and_never_the_same() {
        let (one, two) = (random_hex().unwrap(), random_hex().unwrap());
        assert!(one.len() == 64 && one.bytes().all(|byte| byte.is_ascii_hexdigit()) && one != two);
    }

    #[test]
    fn the_roots_for_aws_services_are_those_of_amazon_trust_services() {
        let roots: Vec<_> = CertificateDer::pem_slice_iter(aws_roots()).collect::<Result<_, _>>().unwrap();
        let names = roots.iter().map(|root| {
            let (_, parsed) = x509_parser::parse_x509_certificate(root).unwrap();
            parsed.subject().iter_common_name().next().unwrap().as_str().unwrap().to_owned()
        });
        assert_eq!(
            names.collect::<Vec<_>>(),
            [
                "Amazon Root CA 1",
                "Amazon Root CA 2",
                "Amazon Root CA 3",
                "Amazon Root CA 4",
                "Starfield Services Root Certificate Authority - G2"
            ]
        );
        assert!(aws(&ExtraCa::default()).is_ok());
    }

    #[test]
    fn an_extra_ca_that_is_not_one_is_an_error_that_names_the_file() {
        let error = |file: &Path, pem: Option<&str>| {
            let extra_ca = ExtraCa { file: Some(file.to_owned()), pem: pem.map(str::to_owned) };
            upstream(&extra_ca).unwrap_err().to_string()
        };
        let file = tempfile::NamedTempFile::new().unwrap();
        assert!(error(file.path(), None).contains(file.path().to_str().unwrap()));
        assert!(error(Path::new("/nonexistent/ca.pem"), None).contains("/nonexistent/ca.pem"));
        let text = upstream(&ExtraCa { file: None, pem: Some("a CA".to_owned()) }).unwrap_err().to_string();
        assert_eq!(
            text,
            "extra_ca cannot be used: it holds no certificate; it must be the PEM text of one or more certificates"
        );
    }

    #[test]
    fn the_text_and_the_file_of_the_configuration_are_both_added() {
        let ca = |name: &str| {
            let key = rcgen::KeyPair::generate().unwrap();
            rcgen::CertificateParams::new(vec![name.into()]).unwrap().self_signed(&key).unwrap().pem()
        };
        let file = tempfile::NamedTempFile::new().unwrap();
        std::fs::write(file.path(), ca("one")).unwrap();
        let two = format!("# China\r\n{}\n{}", ca("two").replace('\n', "\r\n"), ca("three"));
        let extra_ca = ExtraCa { file: Some(file.path().to_owned()), pem: Some(two) };
        let pem = extra_ca_pem(&extra_ca).unwrap();
        let count: usize = pem.iter().map(|pem| pem_certificates(pem).unwrap().len()).sum();
        assert_eq!((pem.len(), count), (2, 3));
        assert!(upstream(&extra_ca).is_ok() && aws(&extra_ca).is_ok() && vault(&extra_ca, None).is_ok());
    }

    #[test]
    fn the_channel_binding_follows_the_signature() {
        let key = rcgen::KeyPair::generate_for(&rcgen::PKCS_ECDSA_P384_SHA384).unwrap();
        let certificate = rcgen::CertificateParams::new(vec!["db".into()]).unwrap().self_signed(&key).unwrap();
        assert_eq!(server_end_point(certificate.der()).unwrap().len(), 48);
        let key = rcgen::KeyPair::generate_for(&rcgen::PKCS_ED25519).unwrap();
        let certificate = rcgen::CertificateParams::new(vec!["db".into()]).unwrap().self_signed(&key).unwrap();
        assert_eq!(server_end_point(certificate.der()), None);
    }
}
