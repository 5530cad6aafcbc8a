//! Secrets Manager from moto, the AWS stand-in of the Python world: versions and staging labels as AWS keeps them.

use std::net::Ipv4Addr;
use std::path::Path;
use std::process::Stdio;
use std::time::Duration;

use anyhow::{Context as _, bail};
use serde_json::json;
use tokio::net::TcpStream;
use tokio::process::{Child, Command};

use crate::{REGION, port, tools};

/// A Python program that imports botocore takes its time.
const START_TIMEOUT: Duration = Duration::from_secs(60);

/// For servers on this machine.
pub(crate) fn http_client() -> reqwest::Client {
    // The first one in this process stays.
    let _already = rustls::crypto::aws_lc_rs::default_provider().install_default();
    reqwest::Client::new()
}

/// A running server; killed when dropped.
pub struct Moto {
    port: u16,
    _child: Child,
}

impl Moto {
    /// Starts a server on a free port; its log goes to `folder`.
    ///
    /// # Errors
    /// What is missing and how to get it.
    pub async fn start(folder: &Path) -> anyhow::Result<Self> {
        let port = port::free()?;
        let log = std::fs::File::create(folder.join("moto.log"))?;
        let mut server = Command::new(tools::find("moto_server")?);
        server.args(["-H", "127.0.0.1", "-p", &port.to_string()]).kill_on_drop(true);
        server.stdin(Stdio::null()).stdout(log.try_clone()?).stderr(log);
        let mut child = server.spawn().context("cannot start moto_server")?;
        let deadline = tokio::time::Instant::now() + START_TIMEOUT;
        while TcpStream::connect((Ipv4Addr::LOCALHOST, port)).await.is_err() {
            if let Some(status) = child.try_wait()? {
                let log = std::fs::read_to_string(folder.join("moto.log")).unwrap_or_default();
                bail!("moto_server ended at once with {status}:\n{log}");
            }
            anyhow::ensure!(tokio::time::Instant::now() < deadline, "moto_server is not ready after a minute");
            tokio::time::sleep(Duration::from_millis(100)).await;
        }
        Ok(Self { port, _child: child })
    }

    /// Keeps a new secret.
    ///
    /// # Errors
    /// When moto does not take it.
    pub async fn create_secret(&self, name: &str, text: &str) -> anyhow::Result<()> {
        let body = json!({"Name": name, "SecretString": text, "ClientRequestToken": uuid::Uuid::new_v4().to_string()});
        // moto takes the region from the signature, and checks none.
        let scope = format!("AKIDKEEPER/20260101/{REGION}/secretsmanager/aws4_request");
        let call = http_client()
            .post(self.endpoint())
            .header("authorization", format!("AWS4-HMAC-SHA256 Credential={scope}, SignedHeaders=host, Signature=0"))
            .header("content-type", "application/x-amz-json-1.1")
            .header("x-amz-target", "secretsmanager.CreateSecret")
            .body(body.to_string());
        call.send().await?.error_for_status().with_context(|| format!("moto does not take the secret {name}"))?;
        Ok(())
    }

    /// The value for `AWS_ENDPOINT_URL_SECRETS_MANAGER`.
    pub fn endpoint(&self) -> String {
        format!("http://127.0.0.1:{}", self.port)
    }
}
