//! A Vault for the tests: OpenBao, and before it a strict stand-in of the AWS auth method, which OpenBao does not have.
//!
//! `auth/aws/login` is checked as Vault documents it: base64 of URL, headers and body, a signed server id, the signature as
//! STS checks it, the role's allowed principals. Its answer is a token made in OpenBao; every other call passes through.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::process::Stdio;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use anyhow::{Context as _, bail, ensure};
use axum::Router;
use axum::body::{Body, Bytes};
use axum::extract::{Request, State};
use axum::http::{HeaderMap, Response, StatusCode};
use axum::routing::post;
use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use serde_json::{Value, json};
use tokio::process::{Child, Command};
use tokio_util::sync::CancellationToken;

use crate::api::serve_until;
use crate::{REGION, port, tools};

/// What the stand-in wants in `X-Vault-AWS-IAM-Server-ID`.
pub const SERVER_ID: &str = "vault.sandbox";

const START_TIMEOUT: Duration = Duration::from_secs(30);
/// Headers of AWS that Vault passes on to STS (`path_login.go` of its AWS auth method); others are refused.
const ALLOWED: [&str; 8] = [
    "x-amz-algorithm",
    "x-amz-content-sha256",
    "x-amz-credential",
    "x-amz-date",
    "x-amz-security-token",
    "x-amz-signature",
    "x-amz-signedheaders",
    "x-amz-user-agent",
];

/// Says who signed this request of STS: headers with names in lower case, body.
pub type VerifyIdentity = Arc<dyn Fn(&BTreeMap<String, String>, &[u8]) -> Result<String, String> + Send + Sync>;

/// A role of the AWS auth method.
#[derive(Debug, Clone)]
pub struct LoginRole {
    /// How the ARN of a caller must start.
    pub principal: String,
    pub policy: String,
    /// The token is of the entity that has the caller's ARN as an alias, as with `iam_alias=full_arn`: its policies count
    /// too.
    pub by_person: bool,
    /// Of the token.
    pub ttl: Duration,
}

struct Shared {
    bao: String,
    root: String,
    http: reqwest::Client,
    verify: VerifyIdentity,
    roles: BTreeMap<String, LoginRole>,
    /// Every token that was given.
    tokens: Mutex<Vec<String>>,
    /// Every password of a database user.
    passwords: Mutex<Vec<String>>,
    /// Every signature that a login came with.
    signatures: Mutex<Vec<String>>,
}

/// A running server; ends when dropped.
pub struct Vault {
    /// For the relay.
    pub address: String,
    shared: Arc<Shared>,
    folder: PathBuf,
    unseal_key: String,
    child: Child,
    stop: CancellationToken,
}

impl Drop for Vault {
    fn drop(&mut self) {
        self.stop.cancel();
        // A stopped process would not see the kill of its handle at once.
        crate::signal(self.child.id(), rustix::process::Signal::KILL);
    }
}

impl Vault {
    /// Starts an empty server whose state is below `folder`, with these login roles.
    ///
    /// # Errors
    /// What is missing and how to get it.
    pub async fn start(
        folder: &Path,
        verify: VerifyIdentity,
        roles: BTreeMap<String, LoginRole>,
    ) -> anyhow::Result<Self> {
        let folder = folder.join("bao");
        let bao = settle(&folder, "one")?;
        // The first one in this process stays.
        let _already = rustls::crypto::aws_lc_rs::default_provider().install_default();
        let http = reqwest::Client::new();
        let mut child = spawn(&folder)?;
        wait_for(&mut child, &http, &bao, |_| true).await?;
        let wanted = json!({"secret_shares": 1, "secret_threshold": 1});
        let made = http.put(format!("{bao}/v1/sys/init")).body(wanted.to_string()).send().await?.text().await?;
        let made: Value = serde_json::from_str(&made)?;
        let text = |value: &Value| value.as_str().map(str::to_owned).context("sys/init gave no keys");
        let (unseal_key, root) = (text(&made["keys_base64"][0])?, text(&made["root_token"])?);
        let (tokens, passwords, signatures) = Default::default();
        let shared = Arc::new(Shared { bao, root, http, verify, roles, tokens, passwords, signatures });
        let router =
            Router::new().route("/v1/auth/aws/login", post(login)).fallback(pass).with_state(Arc::clone(&shared));
        let stop = CancellationToken::new();
        let address = serve_until(&stop, router).await?;
        let mut vault = Self { address, shared, folder, unseal_key, child, stop };
        vault.unseal().await?;
        Ok(vault)
    }

    /// Kills the server and starts it again, with what it has written down.
    ///
    /// # Errors
    /// If it does not come back.
    pub async fn restart(&mut self) -> anyhow::Result<()> {
        self.child.kill().await?;
        self.child = spawn(&self.folder)?;
        wait_for(&mut self.child, &self.shared.http, &self.shared.bao, |_| true).await?;
        self.unseal().await
    }

    /// Starts a second node, which joins this one's cluster as its standby.
    ///
    /// # Errors
    /// If it does not become one.
    pub async fn standby(&self) -> anyhow::Result<Standby> {
        let folder = self.folder.join("standby");
        let address = settle(&folder, "two")?;
        let mut child = spawn(&folder)?;
        let Shared { http, bao, .. } = &*self.shared;
        wait_for(&mut child, http, &address, |_| true).await?;
        for (path, body) in [
            ("sys/storage/raft/join", json!({"leader_api_addr": bao})),
            ("sys/unseal", json!({"key": self.unseal_key})),
        ] {
            http.put(format!("{address}/v1/{path}")).body(body.to_string()).send().await?.error_for_status()?;
        }
        wait_for(&mut child, http, &address, |status| status == 429).await?;
        Ok(Standby { address, _child: child })
    }

    /// Where the server itself listens.
    pub fn own_address(&self) -> &str {
        &self.shared.bao
    }

    /// Kills the server. A standby goes on telling callers to go to it.
    ///
    /// # Errors
    /// If it cannot be killed.
    pub async fn crash(&mut self) -> anyhow::Result<()> {
        Ok(self.child.kill().await?)
    }

    /// Ends the server in order. A standby knows no active node then.
    ///
    /// # Errors
    /// If it does not end.
    pub async fn end(&mut self) -> anyhow::Result<()> {
        crate::signal(self.child.id(), rustix::process::Signal::TERM);
        self.child.wait().await?;
        Ok(())
    }

    /// Opens it after a start or `sys/seal`, and waits until it serves.
    ///
    /// # Errors
    /// If it does not serve.
    pub async fn unseal(&mut self) -> anyhow::Result<()> {
        let Shared { http, bao, .. } = &*self.shared;
        let body = json!({"key": self.unseal_key}).to_string();
        http.put(format!("{bao}/v1/sys/unseal")).body(body).send().await?.error_for_status()?;
        wait_for(&mut self.child, http, bao, |status| status == 200).await
    }

    /// A call with the root token, below a namespace if its name comes before the path with `//`; the answer's JSON, null
    /// if it has none.
    ///
    /// # Errors
    /// What Vault says.
    pub async fn root(&self, method: &str, path: &str, body: &Value) -> anyhow::Result<Value> {
        let (namespace, path) = path.split_once("//").unwrap_or(("", path));
        let Shared { http, bao, root, .. } = &*self.shared;
        let call = http.request(method.parse()?, format!("{bao}/v1/{path}")).header("x-vault-token", root);
        let answer = call.header("x-vault-namespace", namespace).body(body.to_string()).send().await?;
        let (status, body) = (answer.status(), answer.text().await?);
        ensure!(status.is_success(), "{path}: {status} {body}");
        Ok(serde_json::from_str(&body).unwrap_or(Value::Null))
    }

    /// Every token that a login was given.
    pub fn tokens(&self) -> Vec<String> {
        self.shared.tokens.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }

    /// Every password of a database user that was given.
    pub fn passwords(&self) -> Vec<String> {
        self.shared.passwords.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }

    /// Every signature that a login came with.
    pub fn signatures(&self) -> Vec<String> {
        self.shared.signatures.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }

    /// Gives the person with this ARN policies of their own, and roles that are `by_person` a way to know them.
    ///
    /// # Errors
    /// What Vault says.
    pub async fn person(&self, arn: &str, policies: &[&str]) -> anyhow::Result<()> {
        let anybody = json!({"allowed_entity_aliases": "*", "orphan": true, "renewable": true});
        self.root("POST", "auth/token/roles/people", &anybody).await?;
        let mounts = self.root("GET", "sys/auth", &Value::Null).await?;
        let accessor = mounts["token/"]["accessor"].as_str().context("there is no accessor of token/")?;
        let name = arn.rsplit('/').next().unwrap_or(arn);
        let entity = self.root("POST", "identity/entity", &json!({"name": name, "policies": policies})).await?;
        let id = entity["data"]["id"].as_str().context("there is no id of the entity")?;
        // Aliases are in lower case, and compared so.
        let alias = json!({"name": arn.to_lowercase(), "canonical_id": id, "mount_accessor": accessor});
        self.root("POST", "identity/entity-alias", &alias).await.map(drop)
    }

    /// No answer from now on, as if the machine were away; [`Vault::resume`] brings it back as it was.
    pub fn suspend(&self) {
        crate::signal(self.child.id(), rustix::process::Signal::STOP);
    }

    pub fn resume(&self) {
        crate::signal(self.child.id(), rustix::process::Signal::CONT);
    }
}

/// A standby of a [`Vault`], without the stand-in; ends when dropped.
pub struct Standby {
    pub address: String,
    _child: Child,
}

/// Writes the settings of a node; its address.
fn settle(folder: &Path, node: &str) -> anyhow::Result<String> {
    std::fs::create_dir_all(folder.join("data"))?;
    let (port, cluster) = (port::free()?, port::free()?);
    let settings = format!(
        "storage \"raft\" {{\n path = \"{data}\"\n node_id = \"{node}\"\n}}\n\
         listener \"tcp\" {{\n address = \"127.0.0.1:{port}\"\n cluster_address = \"127.0.0.1:{cluster}\"\n \
         tls_disable = true\n}}\n\
         api_addr = \"http://127.0.0.1:{port}\"\ncluster_addr = \"https://127.0.0.1:{cluster}\"\n",
        data = folder.join("data").display(),
    );
    std::fs::write(folder.join("bao.hcl"), settings)?;
    Ok(format!("http://127.0.0.1:{port}"))
}

fn spawn(folder: &Path) -> anyhow::Result<Child> {
    let log = std::fs::File::create(folder.join("bao.log"))?;
    let mut bao = Command::new(tools::find("bao")?);
    bao.arg("server").arg("-config").arg(folder.join("bao.hcl")).env_clear().env("HOME", folder);
    bao.stdin(Stdio::null()).stdout(log.try_clone()?).stderr(log).kill_on_drop(true);
    bao.spawn().context("cannot start bao")
}

/// Waits until `sys/health` answers with a status that is good.
async fn wait_for(
    child: &mut Child,
    http: &reqwest::Client,
    bao: &str,
    good: impl Fn(u16) -> bool,
) -> anyhow::Result<()> {
    let deadline = tokio::time::Instant::now() + START_TIMEOUT;
    while !http.get(format!("{bao}/v1/sys/health")).send().await.is_ok_and(|answer| good(answer.status().as_u16())) {
        if let Some(status) = child.try_wait()? {
            bail!("bao ended with {status}; see bao.log");
        }
        ensure!(tokio::time::Instant::now() < deadline, "bao is not ready after {} s", START_TIMEOUT.as_secs());
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
    Ok(())
}

async fn login(State(shared): State<Arc<Shared>>, headers: HeaderMap, body: Bytes) -> Response<Body> {
    let namespace = headers.get("x-vault-namespace").and_then(|value| value.to_str().ok()).unwrap_or_default();
    match log_in(&shared, namespace, &body).await {
        Ok((status, answer)) => reply(status, answer),
        Err(error) => reply(StatusCode::BAD_REQUEST, json!({"errors": [error.to_string()]}).to_string()),
    }
}

async fn log_in(shared: &Shared, namespace: &str, body: &[u8]) -> anyhow::Result<(StatusCode, String)> {
    let input: Value = serde_json::from_slice(body)?;
    let text = |name: &str| input[name].as_str().with_context(|| format!("missing {name}"));
    let decoded = |name: &str| anyhow::Ok(STANDARD.decode(text(name)?)?);
    ensure!(text("iam_http_request_method")? == "POST", "invalid iam_http_request_method");
    let host = format!("sts.{REGION}.amazonaws.com");
    ensure!(decoded("iam_request_url")? == format!("https://{host}/").as_bytes(), "invalid iam_request_url");
    let body = decoded("iam_request_body")?;
    ensure!(body == b"Action=GetCallerIdentity&Version=2011-06-15", "invalid iam_request_body");
    let headers: BTreeMap<String, String> = serde_json::from_slice(&decoded("iam_request_headers")?)?;
    let headers: BTreeMap<String, String> =
        headers.into_iter().map(|(name, value)| (name.to_lowercase(), value)).collect();
    if let Some(other) = headers.keys().find(|name| name.starts_with("x-amz-") && !ALLOWED.contains(&name.as_str())) {
        bail!("invalid request header: {other}");
    }
    ensure!(headers.get("host") == Some(&host), "error making upstream request: another host was signed");
    let id = headers.get("x-vault-aws-iam-server-id").context("missing header \"X-Vault-AWS-IAM-Server-ID\"")?;
    ensure!(id == SERVER_ID, "expected \"{SERVER_ID}\" but got another X-Vault-AWS-IAM-Server-ID");
    let authorization = headers.get("authorization").map(String::as_str).unwrap_or_default();
    let signature = authorization.split_once("Signature=").map(|(_, signature)| signature.to_owned());
    shared.signatures.lock().unwrap_or_else(PoisonError::into_inner).extend(signature);
    let signed = headers.get("authorization").and_then(|value| {
        let names = value.split(", ").find_map(|field| field.strip_prefix("SignedHeaders="))?;
        names.split(';').find(|name| *name == "x-vault-aws-iam-server-id")
    });
    ensure!(signed.is_some(), "the header X-Vault-AWS-IAM-Server-ID is not signed");
    let arn = (shared.verify)(&headers, &body)
        .map_err(|why| anyhow::anyhow!("error making upstream request: received error code 403 from STS: {why}"))?;
    // The name of the role or user of IAM, unless the login says another one.
    let friendly = arn.split('/').nth(1).unwrap_or_default();
    let name = input["role"].as_str().filter(|name| !name.is_empty()).unwrap_or(friendly);
    let Some(role) = shared.roles.get(name) else { bail!("entry for role {name} not found") };
    ensure!(arn.starts_with(&role.principal), "IAM Principal \"{arn}\" does not belong to the role \"{name}\"");
    let mut wanted = json!({"policies": [role.policy], "ttl": format!("{}s", role.ttl.as_secs()), "renewable": true});
    let mut path = "auth/token/create";
    if role.by_person {
        path = "auth/token/create/people";
        wanted["entity_alias"] = json!(arn.to_lowercase());
    }
    let call = shared.http.post(format!("{}/v1/{path}", shared.bao)).header("x-vault-token", &shared.root);
    let answer = call.header("x-vault-namespace", namespace).body(wanted.to_string()).send().await?;
    let (status, answer) = (answer.status(), answer.text().await?);
    let made: Value = serde_json::from_str(&answer).unwrap_or_default();
    let token = made["auth"]["client_token"].as_str().map(str::to_owned);
    shared.tokens.lock().unwrap_or_else(PoisonError::into_inner).extend(token);
    Ok((status, answer))
}

/// Everything else is OpenBao's.
async fn pass(State(shared): State<Arc<Shared>>, request: Request) -> Response<Body> {
    let (parts, body) = request.into_parts();
    let path = parts.uri.path_and_query().map(ToString::to_string).unwrap_or_default();
    let Ok(body) = axum::body::to_bytes(body, 1 << 20).await else {
        return reply(StatusCode::BAD_REQUEST, String::new());
    };
    let mut call = shared.http.request(parts.method, format!("{}{path}", shared.bao)).body(body);
    for name in ["x-vault-token", "x-vault-request", "x-vault-namespace"] {
        if let Some(value) = parts.headers.get(name) {
            call = call.header(name, value);
        }
    }
    match call.send().await {
        Ok(answer) => {
            let (status, answer) = (answer.status(), answer.text().await.unwrap_or_default());
            let made: Value = serde_json::from_str(&answer).unwrap_or_default();
            let password = made["data"]["password"].as_str().map(str::to_owned);
            shared.passwords.lock().unwrap_or_else(PoisonError::into_inner).extend(password);
            reply(status, answer)
        }
        Err(error) => reply(StatusCode::BAD_GATEWAY, error.to_string()),
    }
}

fn reply(status: StatusCode, body: String) -> Response<Body> {
    let mut response = Response::new(Body::from(body));
    *response.status_mut() = status;
    response
}
