//! What the database servers of the sandbox share: certificates of one CA, the PAM service that asks our
//! verifier, and programs run as the server's user.

use std::os::unix::fs::PermissionsExt as _;
use std::path::{Path, PathBuf};
use std::process::Stdio;
use std::time::Duration;

use anyhow::{Context as _, bail, ensure};
use rcgen::{
    BasicConstraints, CertificateParams, DnType, ExtendedKeyUsagePurpose, IsCa, Issuer, KeyPair, KeyUsagePurpose,
};
use sha2::Digest as _;
use tokio::process::{Child, Command};

const START_TIMEOUT: Duration = Duration::from_secs(30);
const PAM_SOURCE: &str = include_str!("../pam/pam_token.c");

/// What to leave out or get wrong, for tests.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Flaws {
    /// The certificate names another host.
    pub other_name: bool,
    /// No TLS at all.
    pub no_tls: bool,
}

/// Makes the server's folder below `folder`, which must be readable by other users.
pub(crate) fn make_folder(folder: &Path, name: &str) -> anyhow::Result<PathBuf> {
    let folder = folder.join(name);
    std::fs::create_dir_all(&folder).with_context(|| format!("cannot make {}", folder.display()))?;
    std::fs::set_permissions(&folder, std::fs::Permissions::from_mode(0o755))?;
    Ok(folder)
}

/// The file of the CA of all servers below `folder`.
pub(crate) fn ca_file(folder: &Path) -> PathBuf {
    folder.join("ca.pem")
}

/// The CA of all servers below `folder`, as one CA stands for all of RDS; the first that asks makes it.
fn authority(folder: &Path) -> anyhow::Result<Issuer<'static, KeyPair>> {
    let mut ca = CertificateParams::new(Vec::new())?;
    ca.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
    ca.key_usages = vec![KeyUsagePurpose::KeyCertSign, KeyUsagePurpose::CrlSign];
    ca.distinguished_name.push(DnType::CommonName, "bastion sandbox RDS CA");
    let key_file = folder.join("ca.key");
    if !key_file.exists() {
        let key = KeyPair::generate()?;
        std::fs::write(ca_file(folder), ca.self_signed(&key)?.pem())?;
        write_key(&key_file, &key)?;
    }
    let key = KeyPair::from_pem(&std::fs::read_to_string(key_file)?)?;
    Ok(Issuer::new(ca, key))
}

/// Writes `server.pem` and `server.key` into the server's folder, signed by the CA of the folder above.
pub(crate) fn write_certificate(folder: &Path, hosts: &[&str], flaws: Flaws) -> anyhow::Result<()> {
    let names = match flaws.other_name {
        true => vec!["other.cluster-zzz999.ap-northeast-1.rds.amazonaws.com".to_owned()],
        false => hosts.iter().map(|&host| host.to_owned()).collect(),
    };
    let mut server = CertificateParams::new(names)?;
    server.extended_key_usages = vec![ExtendedKeyUsagePurpose::ServerAuth];
    let key = KeyPair::generate()?;
    let above = folder.parent().context("the server's folder has none above it")?;
    std::fs::write(folder.join("server.pem"), server.signed_by(&key, &authority(above)?)?.pem())?;
    write_key(&folder.join("server.key"), &key)
}

fn write_key(path: &Path, key: &KeyPair) -> anyhow::Result<()> {
    std::fs::write(path, key.serialize_pem())?;
    Ok(std::fs::set_permissions(path, std::fs::Permissions::from_mode(0o600))?)
}

/// A PAM service of our own that asks the verifier; removed when dropped.
#[derive(Debug)]
pub(crate) struct Pam {
    service: PathBuf,
    log: PathBuf,
}

impl Pam {
    /// Compiles the module into `folder` and registers a service; PAM reads services from /etc/pam.d only. `port` makes
    /// its name unique, `state` is what the verifier knows.
    pub(crate) async fn install(folder: &Path, verifier: &Path, state: &Path, port: u16) -> anyhow::Result<Self> {
        let source = folder.join("pam_token.c");
        let module = folder.join("pam_token.so");
        std::fs::write(&source, PAM_SOURCE)?;
        let mut compile = Command::new("cc");
        compile.args(["-O2", "-Wall", "-Wextra", "-fPIC", "-shared", "-o"]).arg(&module).arg(&source).arg("-lpam");
        run(&mut compile).await.context("cannot compile the PAM module; install gcc and libpam0g-dev")?;
        // The server's user may not be able to reach the build folder.
        // Beside the folder, all of which will be the server's; and no copy where the file system can do without.
        let own_verifier = folder.with_extension("verifier");
        if !own_verifier.exists() && std::fs::hard_link(verifier, &own_verifier).is_err() {
            std::fs::copy(verifier, &own_verifier).with_context(|| format!("cannot copy {}", verifier.display()))?;
        }
        let log = folder.join("verifier.log");
        std::fs::write(&log, "")?;
        std::fs::set_permissions(&log, std::fs::Permissions::from_mode(0o666))?;
        let text = format!(
            "auth required {} {} verify-rds-token --state {} --log {}\naccount required pam_permit.so\n",
            module.display(),
            own_verifier.display(),
            state.display(),
            log.display()
        );
        let service = Path::new("/etc/pam.d").join(format!("bastion-sandbox-{port}"));
        if std::fs::write(&service, &text).is_err() {
            let staged = folder.join("pam.service");
            std::fs::write(&staged, text)?;
            let mut install = Command::new("sudo");
            install.args(["install", "-m", "644"]).arg(&staged).arg(&service);
            run(&mut install)
                .await
                .with_context(|| format!("cannot write {}; run as root or with sudo", service.display()))?;
        }
        Ok(Self { service, log })
    }

    /// The name that the server's settings refer to.
    pub(crate) fn name(&self) -> String {
        self.service.file_name().unwrap_or_default().to_string_lossy().into_owned()
    }

    /// What the verifier said of each login.
    pub(crate) fn log(&self) -> String {
        std::fs::read_to_string(&self.log).unwrap_or_default()
    }
}

impl Drop for Pam {
    fn drop(&mut self) {
        if std::fs::remove_file(&self.service).is_err() && self.service.exists() {
            // Best effort: without sudo now there was sudo at the start.
            let _left = std::process::Command::new("sudo").args(["rm", "-f"]).arg(&self.service).status();
        }
    }
}

/// A program run as the server's `user` (if this is root), in `folder`, with nothing of our environment.
pub(crate) fn command_as(user: &str, program: &Path, folder: &Path) -> Command {
    let mut command = match is_root() {
        true => {
            let mut command = Command::new("setpriv");
            command.args([&format!("--reuid={user}"), &format!("--regid={user}"), "--init-groups", "--"]).arg(program);
            command
        }
        false => Command::new(program),
    };
    command.env_clear().env("PATH", "/usr/bin:/bin").env("LC_ALL", "C.UTF-8").current_dir(folder);
    command
}

/// Gives everything in `folder` to the server's user.
pub(crate) async fn hand_over(folder: &Path, user: &str) -> anyhow::Result<()> {
    if is_root() {
        run(Command::new("chown").arg("-R").arg(format!("{user}:")).arg(folder)).await?;
    }
    Ok(())
}

/// Fills `folder` as `make` does, once, and from a copy of that ever after: what a new server begins with is the same each time
/// and takes seconds of a processor. The copy is kept beside the program `verifier`, under `recipe`: all that it depends on.
pub(crate) async fn make_once(
    verifier: &Path,
    recipe: &str,
    folder: &Path,
    make: impl Future<Output = anyhow::Result<()>>,
) -> anyhow::Result<()> {
    let all = verifier.parent().context("the program is in no folder")?.join("sandbox-servers");
    let kept = all.join(hex::encode(sha2::Sha256::digest(recipe).get(..8).unwrap_or_default()));
    if kept.exists() {
        return copy(&kept, folder).await;
    }
    make.await?;
    std::fs::create_dir_all(&all)?;
    let staged = tempfile::tempdir_in(&all)?;
    copy(folder, &staged.path().join("whole")).await?;
    // Another process may have been quicker; then its copy is the one.
    let _is_ours = std::fs::rename(staged.path().join("whole"), &kept);
    Ok(())
}

async fn copy(from: &Path, to: &Path) -> anyhow::Result<()> {
    run(Command::new("cp").args(["--archive", "--no-target-directory"]).arg(from).arg(to)).await
}

/// Starts `server`, which writes to `server.log` in `folder`, and waits until `ping` succeeds.
pub(crate) async fn start(
    mut server: Command,
    name: &str,
    folder: &Path,
    ping: impl Fn() -> Command,
) -> anyhow::Result<Child> {
    let log_file = folder.join("server.log");
    let log = std::fs::File::create(&log_file)?;
    server.stdin(Stdio::null()).stdout(log.try_clone()?).stderr(log).kill_on_drop(true);
    let mut child = server.spawn().with_context(|| format!("cannot start {name}"))?;
    let deadline = tokio::time::Instant::now() + START_TIMEOUT;
    loop {
        if ping().stdout(Stdio::null()).stderr(Stdio::null()).status().await?.success() {
            return Ok(child);
        }
        if let Some(status) = child.try_wait()? {
            let log = std::fs::read_to_string(&log_file).unwrap_or_default();
            bail!("{name} ended at once with {status}:\n{log}");
        }
        ensure!(
            tokio::time::Instant::now() < deadline,
            "{name} is not ready after {} s; see {}",
            START_TIMEOUT.as_secs(),
            log_file.display()
        );
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
}

/// Runs a command-line client with `statements` on its standard input.
pub(crate) async fn feed(mut client: Command, statements: &str) -> anyhow::Result<()> {
    use tokio::io::AsyncWriteExt as _;
    let mut child = client.stdin(Stdio::piped()).stdout(Stdio::null()).stderr(Stdio::piped()).spawn()?;
    let mut input = child.stdin.take().context("the client has no standard input")?;
    input.write_all(statements.as_bytes()).await?;
    drop(input);
    let output = child.wait_with_output().await?;
    ensure!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    Ok(())
}

pub(crate) fn is_root() -> bool {
    rustix::process::geteuid().is_root()
}

pub(crate) async fn run(command: &mut Command) -> anyhow::Result<()> {
    let output = command
        .stdin(Stdio::null())
        .output()
        .await
        .with_context(|| format!("cannot run {:?}", command.as_std().get_program()))?;
    ensure!(
        output.status.success(),
        "{}{}",
        String::from_utf8_lossy(&output.stdout),
        String::from_utf8_lossy(&output.stderr)
    );
    Ok(())
}
