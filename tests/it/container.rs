//! The real image, run by podman as Fargate runs it. `scripts/image` builds it; `scripts/test` does so first.

use std::path::Path;
use std::process::Stdio;
use std::time::{Duration, SystemTime};

use bastion_sandbox::container::{Container, LOCKED_DOWN};
use bastion_sandbox::postgres::Flaws;
use rustix::process::{Pid, Signal, kill_process};
use serde_json::{Value, json};
use tokio::io::{AsyncBufReadExt as _, BufReader};
use tokio::process::Command;

use crate::support::{PATIENCE, World, finish};

/// Podman with a store of its own, and the image in it.
async fn container() -> Container {
    assert!(rustix::process::geteuid().is_root(), "these tests look into containers from outside, so they need root");
    let root = Path::new(env!("CARGO_MANIFEST_DIR"));
    let archive =
        folder().join(format!("bastion-{}.tar", if cfg!(target_arch = "aarch64") { "arm64" } else { "x86-64" }));
    assert!(archive.exists(), "there is no {}: run scripts/image first", archive.display());
    let settings = format!("CONTAINERS_CONF={}", root.join("tests/containers.conf").display());
    let path = |name: &str| folder().join(name).display().to_string();
    let engine = ["env", &settings, "podman", "--root", &path("store"), "--runroot", &path("run")];
    let mut container = Container { engine: engine.map(str::to_owned).to_vec(), image: String::new() };
    let said = podman(&container, &["load", "--quiet", "--input", &archive.display().to_string()]).await;
    said.split_once(": ").expect("podman names the image").1.clone_into(&mut container.image);
    container
}

/// A world whose tasks are containers of the image.
async fn world() -> World {
    let container = container().await;
    World::start_with(Flaws::default(), |config| config.container = Some(container)).await
}

/// Where `scripts/image` puts what it builds: two folders up from `target/debug/bastion`.
fn folder() -> std::path::PathBuf {
    Path::new(crate::support::BASTION).ancestors().nth(2).unwrap().join("image")
}

/// The environment of a relay that needs no database, on an address of this test's own in a network of loopback.
fn variables(network: &str) -> [(&'static str, String); 3] {
    let [a, b, ..] = std::process::id().to_be_bytes()[2..] else { unreachable!() };
    let config = json!({
        "env": "demo", "access": "read", "region": "eu-west-1", "identity": "optional",
        "target": {"orders": {"engine": "postgres", "host": "orders.example.com", "credential": {"rds_iam": {"user": "u"}}}}
    });
    let listen = format!("{network}.{a}.{}", b.max(2));
    [("BASTION_CONFIG", config.to_string()), ("BASTION_LISTEN", listen), ("BASTION_TASK", "test".to_owned())]
}

/// What podman prints; its complaints about a missing systemd go by.
async fn podman(container: &Container, arguments: &[&str]) -> String {
    let mut command = container.podman();
    command.args(arguments);
    let (code, out, err) = finish(command).await;
    assert_eq!(code, 0, "podman {arguments:?}: {err}");
    out
}

/// A container that runs, until [`Running::end`].
struct Running {
    container: Container,
    name: String,
    pid: u32,
}

impl Running {
    /// Starts the image with a configuration that needs no database, and waits until it listens.
    async fn start() -> Self {
        let container = container().await;
        let name = format!("bastion-test-{}", std::process::id());
        let mut run = container.podman();
        run.args(["run", "--detach", "--pull=never", "--timeout=600", "--name", &name]).args(LOCKED_DOWN);
        for (name, value) in variables("127.193") {
            run.args(["--env", &format!("{name}={value}")]);
        }
        run.arg(&container.image);
        let (code, _, err) = finish(run).await;
        assert_eq!(code, 0, "{err}");
        let pid = podman(&container, &["inspect", "--format", "{{.State.Pid}}", &name]).await.parse().unwrap();
        let running = Self { container, name, pid };
        let ready = async {
            while !running.log().await.contains("ready for connections") {
                tokio::time::sleep(Duration::from_millis(20)).await;
            }
        };
        tokio::time::timeout(PATIENCE, ready).await.expect("the relay is never ready");
        running
    }

    /// What the relay wrote to stderr.
    async fn log(&self) -> String {
        let mut command = self.container.podman();
        command.args(["logs", &self.name]);
        finish(command).await.2
    }

    async fn inspect(&self, format: &str) -> String {
        podman(&self.container, &["inspect", "--format", format, &self.name]).await
    }

    /// Exit code of the image's own health check.
    async fn health(&self) -> i32 {
        let mut command = self.container.podman();
        command.args(["healthcheck", "run", &self.name]);
        finish(command).await.0
    }

    fn signal(&self, signal: Signal) {
        kill_process(Pid::from_raw(i32::try_from(self.pid).unwrap()).unwrap(), signal).unwrap();
    }

    async fn end(self) {
        podman(&self.container, &["rm", "--force", "--time=5", &self.name]).await;
    }
}

#[tokio::test]
async fn the_image_is_one_program_with_its_user_and_empty_folders() {
    let container = container().await;
    let image: Value =
        serde_json::from_str(&podman(&container, &["image", "inspect", &container.image]).await).unwrap();
    let config = &image[0]["Config"];
    assert_eq!(config["User"], "65532:65532");
    assert_eq!(config["Entrypoint"], json!(["/bastion", "relay"]));
    assert_eq!(image[0]["Healthcheck"]["Test"], json!(["CMD", "/bastion", "relay", "--health"]), "{}", image[0]);
    let volumes: Vec<&String> = config["Volumes"].as_object().unwrap().keys().collect();
    assert_eq!(volumes, ["/managed-agents", "/var/lib/amazon/ssm", "/var/log/amazon/ssm"]);
    assert_eq!(config["Labels"]["org.opencontainers.image.version"], env!("CARGO_PKG_VERSION"));
    let layers = image[0]["RootFS"]["Layers"].as_array().unwrap();
    assert_eq!(layers.len(), 1);
    let layer = format!("{}.tar", layers[0].as_str().unwrap().trim_start_matches("sha256:"));
    let listing = format!(
        "tar --extract --to-stdout --file {}/bastion-*.tar {layer} | tar --list --verbose --numeric-owner",
        folder().display()
    );
    let mut tar = Command::new("sh");
    tar.args(["-c", &listing]);
    let (_, out, err) = finish(tar).await;
    let mut entries: Vec<String> = out
        .lines()
        .map(|line| {
            let fields: Vec<&str> = line.split_whitespace().collect();
            format!("{} {} {}", fields[0], fields[1], fields[fields.len() - 1])
        })
        .collect();
    entries.sort();
    let folders = ["etc/", "managed-agents/", "var/", "var/lib/", "var/lib/amazon/", "var/lib/amazon/ssm/"];
    let mut wanted: Vec<String> = folders
        .into_iter()
        .chain(["var/log/", "var/log/amazon/", "var/log/amazon/ssm/"])
        .map(|folder| format!("drwxr-xr-x 0/0 {folder}"))
        .chain(["etc/group", "etc/passwd"].map(|file| format!("-rw-r--r-- 0/0 {file}")))
        .chain(["-rwxr-xr-x 0/0 bastion".to_owned()])
        .collect();
    wanted.sort();
    assert_eq!(entries, wanted, "{err}");
}

#[tokio::test]
async fn it_runs_without_any_right_and_can_write_nowhere() {
    let running = Running::start().await;
    let status = std::fs::read_to_string(format!("/proc/{}/status", running.pid)).unwrap();
    let field = |name: &str| {
        let line = status.lines().find(|line| line.starts_with(name)).unwrap();
        line[name.len()..].split_whitespace().collect::<Vec<_>>().join(" ")
    };
    assert_eq!(
        (field("Uid:"), field("Gid:")),
        ("65532 65532 65532 65532".to_owned(), "65532 65532 65532 65532".to_owned())
    );
    for set in ["CapInh:", "CapPrm:", "CapEff:", "CapBnd:", "CapAmb:"] {
        assert_eq!(field(set), "0000000000000000", "{set}");
    }
    assert_eq!((field("NoNewPrivs:"), field("Seccomp:")), ("1".to_owned(), "2".to_owned()));
    assert_eq!(running.inspect("{{.HostConfig.Memory}}").await, (128 * 1024 * 1024).to_string());

    // From outside, as the relay's user: every folder and file in its view that the kernel would let it write to. /proc
    // holds its own process; /dev/shm and /dev/mqueue are memory that every container has.
    let inside = format!("/proc/{}/root", running.pid);
    let mut find = Command::new("setpriv");
    find.args(["--reuid=65532", "--regid=65532", "--clear-groups", "--inh-caps=-all", "--bounding-set=-all", "find"]);
    find.args([&format!("{inside}/"), "-path", &format!("{inside}/proc"), "-prune", "-o"]);
    find.args(["-writable", "!", "-type", "c", "!", "-type", "l", "-print"]);
    let (_, out, _) = finish(find).await;
    let mut writable: Vec<&str> = out.lines().map(|line| line.trim_start_matches(&inside)).collect();
    writable.sort_unstable();
    // The volumes are root's, for the agent, as they are on Fargate: they take the owner of the image's folders.
    assert_eq!(writable, ["/dev/mqueue", "/dev/shm"]);
    running.end().await;
}

#[tokio::test]
async fn it_listens_soon_and_logs_json_lines() {
    let running = Running::start().await;
    assert!(ready_at(&running.log().await).is_some());
    // Not before podman has noted the start of the program, so the program of the image is started once more without it.
    let mut program = Command::new(format!("/proc/{}/root/bastion", running.pid));
    program.arg("relay").env_clear().envs(variables("127.194")).kill_on_drop(true);
    let started = now();
    let mut child = program.stdout(Stdio::null()).stderr(Stdio::piped()).spawn().unwrap();
    let mut lines = BufReader::new(child.stderr.take().unwrap()).lines();
    let listening = async {
        loop {
            let line = lines.next_line().await.unwrap().expect("it ends");
            if let Some(at) = ready_at(&line) {
                return at;
            }
        }
    };
    let listening = tokio::time::timeout(PATIENCE, listening).await.expect("it never listens");
    let took = listening.duration_since(started).unwrap_or_default();
    println!("listens {:.1} ms after exec", took.as_secs_f64() * 1000.0);
    assert!(took < PATIENCE);
    running.end().await;
}

/// When the relay listened, by its log, of which every line is JSON.
fn ready_at(log: &str) -> Option<SystemTime> {
    let lines =
        log.lines().map(|line| serde_json::from_str::<Value>(line).unwrap_or_else(|error| panic!("{line}: {error}")));
    let mut ready = lines.filter(|line| line["message"] == "ready for connections");
    ready.next().and_then(|line| line["timestamp"].as_str().map(|time| humantime::parse_rfc3339(time).unwrap()))
}

#[expect(clippy::disallowed_methods, reason = "compared with the time in a log")]
fn now() -> SystemTime {
    SystemTime::now()
}

#[tokio::test]
async fn health_is_red_while_the_relay_is_stuck() {
    let running = Running::start().await;
    assert_eq!(running.health().await, 0);
    running.signal(Signal::STOP);
    assert_eq!(running.health().await, 1);
    running.signal(Signal::CONT);
    assert_eq!(running.health().await, 0);
    running.end().await;
}

#[tokio::test]
async fn a_query_ends_before_the_container_does() {
    let world = world().await;
    let relay = world.relay(|_| ()).await;
    let client = relay.client().await;
    let query = async { client.query_one("select pg_sleep(2), 7", &[]).await.unwrap().get::<_, i32>(1) };
    let stopping = async {
        let other = relay.client().await;
        let running = "select count(*) from pg_stat_activity where query like '%pg_sleep(2)%' and pid <> pg_backend_pid() and state = 'active'";
        while other.query_one(running, &[]).await.unwrap().get::<_, i64>(0) == 0 {}
        drop(other);
        world.sandbox.stop_directly(&relay.id);
        relay.wait_for("draining").await;
    };
    let (seven, ()) = tokio::join!(query, stopping);
    assert_eq!(seven, 7);
    drop(client);
    relay.wait_for("\"message\":\"stopped\"").await;
    world.stop().await;
}

#[tokio::test]
async fn an_idle_client_is_cut_before_the_container_is_killed() {
    let world = world().await;
    let relay = world.relay(|_| ()).await;
    let client = relay.client().await;
    assert_eq!(client.query_one("select 7", &[]).await.unwrap().get::<_, i32>(0), 7);
    world.sandbox.stop_directly(&relay.id);
    // The sandbox, as ECS, kills after 30 s, and then this line is never written.
    let stopped = async {
        while !relay.log().contains("\"message\":\"stopped\"") && relay.status() != "STOPPED" {
            tokio::time::sleep(Duration::from_millis(50)).await;
        }
    };
    tokio::time::timeout(3 * PATIENCE, stopped).await.unwrap();
    assert!(relay.log().contains("cutting open connections"), "{}", relay.log());
    assert!(relay.log().contains("\"message\":\"stopped\""), "{}", relay.log());
    drop(client);
    world.stop().await;
}

#[tokio::test]
async fn bastion_up_reaches_the_database_through_the_image() {
    let world = world().await;
    let up = crate::up::up(&world).await;
    let (code, out, err) = up.psql("orders", "select current_user, count(*) from orders").await;
    assert_eq!((code, out.as_str()), (0, "db_read|1000"), "{err}");
    assert_eq!(up.end().await.0, Some(0));
    world.stop().await;
}
