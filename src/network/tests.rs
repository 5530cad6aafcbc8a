use std::net::{Ipv4Addr, SocketAddr};

use bastion_sandbox::proxy::{Options, Proxy as TestProxy};
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::TcpListener;

use super::*;

const HOST: &str = "ssmmessages.eu-west-1.amazonaws.com";

/// A server that answers each byte with the next one.
async fn server() -> SocketAddr {
    let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).await.unwrap();
    let address = listener.local_addr().unwrap();
    #[expect(clippy::disallowed_methods, reason = "ends with the test's runtime")]
    tokio::spawn(async move {
        while let Ok((mut stream, _)) = listener.accept().await {
            if let Ok(byte) = stream.read_u8().await {
                stream.write_u8(byte + 1).await.unwrap();
            }
        }
    });
    address
}

/// The network behind `proxy`, with what it wants shown, that trusts its CA.
fn behind(proxy: &TestProxy, user: &str) -> Network {
    behind_url(proxy, format!("http://{user}{}", proxy.address()))
}

/// The same, with the URL in this form.
fn behind_url(proxy: &TestProxy, url: String) -> Network {
    let folder = tempfile::tempdir().unwrap();
    let file = folder.path().join("ca.pem");
    std::fs::write(&file, proxy.ca()).unwrap();
    let bundle = Bundle::read("AWS_CA_BUNDLE", &file).unwrap();
    Network::new(Proxies::new(|name| (name == "HTTPS_PROXY").then(|| url.clone())), Some(bundle))
}

async fn refused(options: Options, user: &str) -> String {
    let proxy = TestProxy::start(options, server().await).await.unwrap();
    let network = behind(&proxy, user);
    let said = network.connect(HOST, 443, true).await.err().expect("it is let through");
    assert!(!said.contains("S3CRET"), "{said}");
    said.replace(&proxy.address().to_string(), "PROXY")
}

#[tokio::test]
async fn a_tunnel_with_a_password_through_a_proxy_with_a_ca_of_its_own() {
    let options = Options { credentials: Some("alice:S3CRET"), inspects: true, ..Options::default() };
    let proxy = TestProxy::start(options, server().await).await.unwrap();
    let network = behind(&proxy, "alice:S3CRET@");
    let mut stream = network.connect(HOST, 443, true).await.unwrap();
    stream.write_u8(1).await.unwrap();
    assert_eq!(stream.read_u8().await.unwrap(), 2);
    assert_eq!(proxy.seen(), [format!("CONNECT {HOST}:443 HTTP/1.1")]);
    // Without the bundle nobody here trusts it.
    let url = format!("http://alice:S3CRET@{}", proxy.address());
    let network = Network::new(Proxies::new(|name| (name == "https_proxy").then(|| url.clone())), None);
    let said = network.connect(HOST, 443, true).await.err().unwrap();
    assert!(said.contains("UnknownIssuer") && said.contains("set AWS_CA_BUNDLE"), "{said}");
}

#[tokio::test]
async fn a_tunnel_through_a_proxy_that_is_spoken_to_inside_tls() {
    let options = Options { credentials: Some("alice:S3CRET"), inspects: true, tls: true, ..Options::default() };
    let proxy = TestProxy::start(options, server().await).await.unwrap();
    let url = format!("https://alice:S3CRET@{}", proxy.address());
    let mut stream = behind_url(&proxy, url.clone()).connect(HOST, 443, true).await.unwrap();
    stream.write_u8(1).await.unwrap();
    assert_eq!(stream.read_u8().await.unwrap(), 2);
    assert_eq!(proxy.seen(), [format!("CONNECT {HOST}:443 HTTP/1.1")]);
    // Whoever says to be the proxy is not believed.
    let network = Network::new(Proxies::new(|name| (name == "https_proxy").then(|| url.clone())), None);
    let said = network.connect(HOST, 443, true).await.err().unwrap();
    let named = format!("the proxy https://{} (https_proxy) cannot be reached: ", proxy.address());
    assert!(said.starts_with(&named) && said.contains("UnknownIssuer") && !said.contains("S3CRET"), "{said}");
}

#[tokio::test]
async fn a_proxy_that_refuses_is_named_with_what_it_says() {
    let named = "the proxy http://PROXY (HTTPS_PROXY)";
    let password = Options { credentials: Some("alice:other"), ..Options::default() };
    assert_eq!(
        refused(password.clone(), "").await,
        format!(
            "{named} wants a user name and a password (HTTP status 407), which are not in HTTPS_PROXY; write \
             HTTPS_PROXY=http://USER:PASSWORD@HOST:PORT"
        )
    );
    assert!(
        refused(password, "alice:S3CRET@")
            .await
            .starts_with(&format!("{named} does not accept the user name and password"))
    );
    let forbidden = Options { answer: Some("HTTP/1.1 403 Forbidden"), ..Options::default() };
    assert_eq!(refused(forbidden, "").await, format!("{named} does not let through to {HOST}:443: HTTP status 403"));
    let other = Options { answer: Some("220 mail.corp ESMTP"), ..Options::default() };
    assert_eq!(refused(other, "").await, format!("{named} does not speak HTTP"));
    let nobody =
        Network::new(Proxies::new(|name| (name == "ALL_PROXY").then(|| "http://127.0.0.1:9".to_owned())), None);
    let said = nobody.connect(HOST, 443, true).await.err().unwrap();
    assert!(said.starts_with("the proxy http://127.0.0.1:9 (ALL_PROXY) cannot be reached: "), "{said}");
}

#[test]
fn a_bundle_is_what_can_be_used_of_a_file() {
    let folder = tempfile::tempdir().unwrap();
    let file = folder.path().join("ca.pem");
    let read = |text: &str| {
        std::fs::write(&file, text).unwrap();
        Bundle::read("ca_bundle of AWS profile dev", &file)
    };
    let key = rcgen::KeyPair::generate().unwrap();
    let mut parameters = rcgen::CertificateParams::new(Vec::new()).unwrap();
    parameters.is_ca = rcgen::IsCa::Ca(rcgen::BasicConstraints::Unconstrained);
    let good = parameters.self_signed(&key).unwrap().pem();
    let odd = "-----BEGIN CERTIFICATE-----\nAAAA\n-----END CERTIFICATE-----\n";
    let bundle = read(&format!("# comment\n{odd}{good}")).unwrap();
    assert_eq!(bundle.certificates().len(), 1);
    // The same again in PEM.
    assert_eq!(read(&bundle.pem()).unwrap().certificates(), bundle.certificates());
    let said = read(odd).unwrap_err();
    assert!(
        said.starts_with("ca_bundle of AWS profile dev names the file /")
            && said.ends_with("has no CA certificate in PEM form"),
        "{said}"
    );
}
