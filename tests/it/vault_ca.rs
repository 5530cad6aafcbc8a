//! A Vault behind TLS of a CA of its own: `ca_file`, and what is said without it or with another one.

use std::net::Ipv4Addr;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use rcgen::{BasicConstraints, CertificateParams, IsCa, Issuer, KeyPair, KeyUsagePurpose};
use serde_json::json;
use tokio::net::{TcpListener, TcpStream};
use tokio::task::JoinSet;
use tokio_rustls::TlsAcceptor;
use tokio_rustls::rustls::ServerConfig;
use tokio_rustls::rustls::crypto::aws_lc_rs;
use tokio_rustls::rustls::pki_types::PrivateKeyDer;

use crate::support::{World, logged};
use crate::vault::{Lives, relay, target, vault};

/// What ends TLS in front of a Vault, as a load balancer does; until it is dropped.
struct Front {
    address: String,
    ca_file: PathBuf,
    _serving: JoinSet<()>,
}

impl Front {
    /// With a certificate for `host`, and the CA that has signed it beside it in `folder`.
    async fn start(folder: &Path, vault: &str, host: &str) -> Self {
        let mut ca = CertificateParams::new(Vec::new()).unwrap();
        ca.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
        ca.key_usages = vec![KeyUsagePurpose::KeyCertSign];
        let ca_key = KeyPair::generate().unwrap();
        let ca_file = folder.join(format!("vault-ca-{host}.pem"));
        std::fs::write(&ca_file, ca.self_signed(&ca_key).unwrap().pem()).unwrap();
        let key = KeyPair::generate().unwrap();
        let own = CertificateParams::new(vec![host.to_owned()]).unwrap();
        let certificate = own.signed_by(&key, &Issuer::new(ca, ca_key)).unwrap();
        let config = ServerConfig::builder_with_provider(Arc::new(aws_lc_rs::default_provider()))
            .with_safe_default_protocol_versions()
            .unwrap()
            .with_no_client_auth()
            .with_single_cert(vec![certificate.der().clone()], PrivateKeyDer::try_from(key.serialize_der()).unwrap());
        let acceptor = TlsAcceptor::from(Arc::new(config.unwrap()));
        let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).await.unwrap();
        let address = format!("https://{}", listener.local_addr().unwrap());
        let vault = vault.strip_prefix("http://").unwrap().to_owned();
        let mut serving = JoinSet::new();
        serving.spawn(async move {
            let mut conns = JoinSet::new();
            loop {
                let (stream, _) = listener.accept().await.unwrap();
                let (acceptor, vault) = (acceptor.clone(), vault.clone());
                conns.spawn(async move {
                    // A client that does not trust us ends the handshake.
                    let Ok(mut stream) = acceptor.accept(stream).await else { return };
                    let mut vault = TcpStream::connect(vault).await.unwrap();
                    let _either_end_left = tokio::io::copy_bidirectional(&mut stream, &mut vault).await;
                });
            }
        });
        Self { address, ca_file, _serving: serving }
    }
}

#[tokio::test]
async fn a_vault_of_a_private_ca_needs_its_file_and_is_told_apart_from_others() {
    let world = World::start().await;
    let vault = vault(&world, Lives::default()).await;
    let (front, renamed) = (
        Front::start(world.folder.path(), &vault.address, "127.0.0.1").await,
        Front::start(world.folder.path(), &vault.address, "vault.example.com").await,
    );
    let with = |front: &Front, ca_file: Option<&Path>| {
        let mut target = target(&world, &vault, "bastion", "database/creds/read");
        target["credential"]["vault"]["address"] = json!(front.address);
        if let Some(ca_file) = ca_file {
            target["credential"]["vault"]["ca_file"] = json!(ca_file);
        }
        target
    };
    let relay = relay(
        &world,
        json!({
            "a": with(&front, Some(&front.ca_file)),
            "b": with(&front, None),
            // The CA of the databases, which the relay trusts for them and for AWS.
            "c": with(&front, Some(&world.database.ca_file)),
            "d": with(&renamed, Some(&renamed.ca_file)),
        }),
    )
    .await;
    let (code, user, err) = relay.psql(5432, &[], "select current_user").await;
    assert!(code == 0 && user.starts_with("v-"), "{err}");
    let unknown = "its certificate is not from a trusted CA, so nothing was sent to it";
    for (port, front, parts) in [
        (5433, &front, [unknown, "ca_file of the target"]),
        (5434, &front, [unknown, "ca_file of the target"]),
        (5435, &renamed, ["its certificate is for another name", "as its certificate names it"]),
    ] {
        let (code, _, err) = relay.psql(port, &[], "select 1").await;
        assert_eq!(code, 2);
        for part in parts.into_iter().chain([front.address.as_str()]) {
            assert!(err.contains(part), "{port}: {part:?} is not in {err}");
        }
    }
    drop(relay);
    vault.root("PUT", "sys/leases/revoke-prefix/database/creds/read", &json!({})).await.unwrap();
    drop(vault);
    world.stop().await;
}

#[tokio::test]
async fn a_ca_file_that_cannot_be_used_is_named_at_the_start() {
    let world = World::start().await;
    let vault = vault(&world, Lives::default()).await;
    let (missing, empty) = (world.folder.path().join("missing.pem"), world.folder.path().join("empty.pem"));
    std::fs::write(&empty, "not PEM\n").unwrap();
    for (file, reason) in [(&missing, "No such file"), (&empty, "holds no certificate; it must be a PEM file")] {
        let definition = world.definition(|config| {
            let mut target = target(&world, &vault, "bastion", "database/creds/read");
            target["credential"]["vault"]["ca_file"] = json!(file);
            config["identity"] = json!("optional");
            config["target"] = json!({"orders": target});
        });
        let (id, _) = world.sandbox.run_directly(&definition);
        let log = logged(&world.sandbox, &id, reason).await;
        assert!(log.contains(&file.display().to_string()) && !log.contains("ready for connections"), "{log}");
    }
    drop(vault);
    world.stop().await;
}
