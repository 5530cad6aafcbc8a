//! The launcher behind a proxy: the calls of the API, through the program. The websocket is tested beside its code.

use std::net::SocketAddr;

use bastion_sandbox::proxy::{Options, Proxy};
use tokio::process::Command;

use crate::support::{World, finish};
use crate::up::bastion;

/// No such name is anywhere: only a proxy leads to it.
const HOST: &str = "aws.sandbox.invalid";

/// `bastion status demo` with the API at `scheme`://HOST and these variables.
fn status(world: &World, scheme: &str, variables: &[(&str, &str)]) -> Command {
    let mut command = bastion(world, "alice", &["status", "demo", "--json"]);
    command.env("AWS_ENDPOINT_URL", format!("{scheme}://{HOST}:4443")).envs(variables.iter().copied());
    command
}

fn endpoint(world: &World) -> SocketAddr {
    world.sandbox.endpoint().trim_start_matches("http://").parse().unwrap()
}

const NOTHING: &str = r#"{"tasks":[]}"#;

#[tokio::test]
async fn calls_go_through_a_proxy_that_looks_into_tls() {
    let world = World::start().await;
    let options = Options { inspects: true, credentials: Some("al ice:S3:CRET"), ..Options::default() };
    let proxy = Proxy::start(options, endpoint(&world)).await.unwrap();
    let ca = world.folder.path().join("ca.pem");
    std::fs::write(&ca, format!("# of the company\n{}", proxy.ca())).unwrap();
    let ca = ca.to_str().unwrap();
    let url = format!("http://al%20ice:S3%3ACRET@{}", proxy.address());

    // The only certificates that count are those of the bundle.
    let (code, out, err) = finish(status(&world, "https", &[("HTTPS_PROXY", &url), ("AWS_CA_BUNDLE", ca)])).await;
    assert_eq!((code, out.as_str(), err.as_str()), (0, NOTHING, ""));
    assert!(proxy.seen().iter().all(|line| line == &format!("CONNECT {HOST}:4443 HTTP/1.1")), "{:?}", proxy.seen());
    assert!(!proxy.seen().is_empty());

    // The profile may name it as well.
    let aws = world.folder.path().join(".aws");
    std::fs::create_dir(&aws).unwrap();
    std::fs::write(aws.join("config"), format!("[default]\nca_bundle = {ca}\n")).unwrap();
    let (code, out, err) = finish(status(&world, "https", &[("all_proxy", &url)])).await;
    assert_eq!((code, out.as_str(), err.as_str()), (0, NOTHING, ""));
    std::fs::remove_file(aws.join("config")).unwrap();

    let (code, _, err) = finish(status(&world, "https", &[("HTTPS_PROXY", &url)])).await;
    assert!(code == 1 && err.contains("UnknownIssuer") && err.contains("set AWS_CA_BUNDLE to a PEM file"), "{err}");
    assert!(!err.contains("CRET"), "{err}");

    for (bundle, why) in [("/nowhere/ca.pem", "cannot be read"), ("/etc/hostname", "has no CA certificate in PEM form")]
    {
        let (code, _, err) = finish(status(&world, "https", &[("HTTPS_PROXY", &url), ("AWS_CA_BUNDLE", bundle)])).await;
        let said = format!("AWS_CA_BUNDLE names the file {bundle}, which {why}");
        assert!(code == 1 && err.contains(&said), "{err}");
    }
    world.stop().await;
}

#[tokio::test]
async fn calls_without_tls_go_through_a_proxy_and_what_is_excepted_does_not() {
    let world = World::start().await;
    let options = Options { credentials: Some("alice:S3CRET"), ..Options::default() };
    let proxy = Proxy::start(options, endpoint(&world)).await.unwrap();
    let url = format!("http://alice:S3CRET@{}", proxy.address());
    let (code, out, err) = finish(status(&world, "http", &[("http_proxy", &url)])).await;
    assert_eq!((code, out.as_str(), err.as_str()), (0, NOTHING, ""));
    let through = proxy.seen().len();
    assert!(through > 0 && proxy.seen()[0] == format!("POST http://{HOST}:4443/ HTTP/1.1"), "{:?}", proxy.seen());

    // Loopback is never asked of a proxy.
    let mut direct = bastion(&world, "alice", &["status", "demo", "--json"]);
    direct.env("HTTP_PROXY", &url).env("ALL_PROXY", &url);
    assert_eq!(finish(direct).await, (0, NOTHING.to_owned(), String::new()));
    let excepted = [("HTTP_PROXY", url.as_str()), ("NO_PROXY", "*.sandbox.invalid")];
    let (code, _, err) = finish(status(&world, "http", &excepted)).await;
    assert!(code == 1 && err.contains("lookup address") && !err.contains("through"), "{err}");
    assert_eq!(proxy.seen().len(), through);
    world.stop().await;
}

#[tokio::test]
async fn calls_go_through_a_proxy_that_is_spoken_to_inside_tls() {
    let world = World::start().await;
    let options = Options { tls: true, inspects: true, credentials: Some("alice:S3CRET"), ..Options::default() };
    let proxy = Proxy::start(options, endpoint(&world)).await.unwrap();
    let ca = world.folder.path().join("ca.pem");
    std::fs::write(&ca, proxy.ca()).unwrap();
    let ca = ca.to_str().unwrap();
    let url = format!("https://alice:S3CRET@{}", proxy.address());
    for (scheme, variable, request) in [
        ("https", "HTTPS_PROXY", format!("CONNECT {HOST}:4443 ")),
        ("http", "HTTP_PROXY", format!("POST http://{HOST}:4443/ ")),
    ] {
        let (code, out, err) = finish(status(&world, scheme, &[(variable, &url), ("AWS_CA_BUNDLE", ca)])).await;
        assert_eq!((code, out.as_str(), err.as_str()), (0, NOTHING, ""), "{scheme}");
        assert!(proxy.seen().iter().any(|line| line.starts_with(&request)), "{scheme}: {:?}", proxy.seen());
    }
    // Whoever says to be the proxy is not believed.
    let (code, _, err) = finish(status(&world, "https", &[("HTTPS_PROXY", &url)])).await;
    let named = format!("through the proxy https://{} (HTTPS_PROXY) cannot be reached: ", proxy.address());
    assert!(code == 1 && err.contains(&named) && err.contains("UnknownIssuer") && !err.contains("S3CRET"), "{err}");
    world.stop().await;
}

#[tokio::test]
async fn a_proxy_that_does_not_let_through_is_named_without_its_password() {
    let world = World::start().await;
    let forbidden = Options { answer: Some("HTTP/1.1 403 Forbidden"), ..Options::default() };
    let password = Options { credentials: Some("alice:other"), ..Options::default() };
    let hangs = Options { hangs: true, ..Options::default() };
    for (options, why) in [
        (forbidden, "the proxy does not let the connection through"),
        (password, "the proxy wants a user name and a password, or others (HTTP status 407)"),
        (hangs, "no connection in time"),
    ] {
        let proxy = Proxy::start(options, endpoint(&world)).await.unwrap();
        let url = format!("http://alice:S3CRET@{}", proxy.address());
        let mut command = status(&world, "https", &[("HTTPS_PROXY", &url)]);
        // Three attempts of 5 s each at one that hangs.
        let output = tokio::time::timeout(std::time::Duration::from_secs(60), command.output()).await.unwrap().unwrap();
        let err = String::from_utf8_lossy(&output.stderr);
        let named = format!("through the proxy http://{} (HTTPS_PROXY) cannot be reached: {why}", proxy.address());
        assert!(err.contains(&named), "{named} is not in {err}");
        assert!(!err.contains("S3CRET"), "{err}");
    }
    let nobody = [("HTTPS_PROXY", "http://127.0.0.1:9")];
    let (code, _, err) = finish(status(&world, "https", &nobody)).await;
    assert!(code == 1 && err.contains("through the proxy http://127.0.0.1:9 (HTTPS_PROXY) cannot be reached"), "{err}");
    let socks = [("ALL_PROXY", "socks5://alice:S3CRET@127.0.0.1:1080")];
    let (code, _, err) = finish(status(&world, "https", &socks)).await;
    assert!(code == 1 && err.contains("ALL_PROXY names a socks5 proxy") && !err.contains("S3CRET"), "{err}");
    world.stop().await;
}
