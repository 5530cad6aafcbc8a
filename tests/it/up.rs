//! The launcher against the sandbox: from `bastion up` to nothing left.

use std::os::unix::fs::PermissionsExt as _;
use std::process::Stdio;
use std::time::Duration;

use bastion_sandbox::Faults;
use bastion_sandbox::gateway::{Change, Event, Knobs, Odds, Path};
use bastion_sandbox::port;
use bastion_sandbox::postgres::Flaws;
use serde_json::Value;
use tokio::io::{AsyncBufReadExt as _, AsyncReadExt as _, AsyncWriteExt as _, BufReader, Lines};
use tokio::net::TcpStream;
use tokio::process::{Child, ChildStdout, Command};

use crate::support::{BASTION, PATIENCE, World, finish, sha256};

/// `bastion` as this caller, hermetic.
pub(crate) fn bastion(world: &World, caller: &str, arguments: &[&str]) -> Command {
    let mut command = Command::new(BASTION);
    command.args(arguments).env_clear().current_dir(world.folder.path()).env("HOME", world.folder.path());
    command.envs(world.sandbox.variables(caller)).kill_on_drop(true);
    command
}

/// A `bastion up --json` that is ready.
pub(crate) struct Up {
    pub(crate) child: Child,
    lines: Lines<BufReader<ChildStdout>>,
    pub(crate) ready: Value,
    /// Everything that came before.
    pub(crate) events: Vec<Value>,
}

impl Up {
    pub(crate) async fn start(world: &World, arguments: &[&str]) -> Self {
        let mut command = bastion(world, "alice", &["up", "demo", "--json"]);
        command.args(arguments);
        Self::of(command).await
    }

    pub(crate) async fn of(mut command: Command) -> Self {
        command.stderr(Stdio::piped());
        Self::of_with(command, |_| ()).await
    }

    /// With its stderr as it is, and `begun` done to it first.
    pub(crate) async fn of_with(mut command: Command, begun: impl FnOnce(&mut Child)) -> Self {
        let mut child = command.stdout(Stdio::piped()).spawn().unwrap();
        begun(&mut child);
        let mut lines = BufReader::new(child.stdout.take().unwrap()).lines();
        let mut events = Vec::new();
        let ready = async {
            while let Some(line) = lines.next_line().await.unwrap() {
                let event: Value = serde_json::from_str(&line).unwrap();
                if event["event"] == "ready" {
                    return Some(event);
                }
                events.push(event);
            }
            None
        };
        let ready = tokio::time::timeout(PATIENCE, ready).await.expect("bastion up hangs");
        let Some(ready) = ready else {
            let mut said = String::new();
            if let Some(mut stderr) = child.stderr.take() {
                stderr.read_to_string(&mut said).await.unwrap();
            }
            panic!("bastion up ended: {said}");
        };
        Self { child, lines, ready, events }
    }

    pub(crate) fn port(&self, target: &str) -> u16 {
        let targets = self.ready["targets"].as_array().unwrap();
        let port = targets.iter().find(|entry| entry["name"] == target).unwrap()["port"].as_u64().unwrap();
        u16::try_from(port).unwrap()
    }

    /// The next event that is wanted.
    pub(crate) async fn event(&mut self, wanted: impl Fn(&Value) -> bool) -> Value {
        let found = async {
            while let Some(line) = self.lines.next_line().await.unwrap() {
                let event: Value = serde_json::from_str(&line).unwrap();
                if wanted(&event) {
                    return event;
                }
            }
            panic!("it ended");
        };
        tokio::time::timeout(3 * PATIENCE, found).await.expect("nothing is told")
    }

    fn interrupt(&self) {
        let pid = rustix::process::Pid::from_raw(i32::try_from(self.child.id().unwrap()).unwrap()).unwrap();
        rustix::process::kill_process(pid, rustix::process::Signal::INT).unwrap();
    }

    /// Ctrl-C; the exit code and the last events. Less time than a drain that waits for an open connection would take.
    pub(crate) async fn end(mut self) -> (Option<i32>, Vec<Value>) {
        self.interrupt();
        let status = tokio::time::timeout(PATIENCE, self.child.wait()).await.expect("Ctrl-C does not end it").unwrap();
        let mut events = Vec::new();
        while let Some(line) = self.lines.next_line().await.unwrap() {
            events.push(serde_json::from_str(&line).unwrap());
        }
        (status.code(), events)
    }

    /// Waits until it has ended by itself; the exit code and what it said last.
    pub(crate) async fn ended(mut self) -> (Option<i32>, String) {
        let status = tokio::time::timeout(3 * PATIENCE, self.child.wait()).await.expect("it does not notice").unwrap();
        let mut said = String::new();
        self.child.stderr.take().unwrap().read_to_string(&mut said).await.unwrap();
        (status.code(), said)
    }

    pub(crate) async fn psql(&self, target: &str, sql: &str) -> (i32, String, String) {
        let mut psql = Command::new("psql");
        psql.env("PGCONNECT_TIMEOUT", "20").args(["-X", "-q", "-A", "-t", "-w", "-h", "localhost", "-U", "anyone"]);
        psql.args(["-p", &self.port(target).to_string(), "-c", sql]);
        finish(psql).await
    }

    async fn client(&self) -> tokio_postgres::Client {
        let parameters = format!("host=127.0.0.1 port={} user=anyone", self.port("orders"));
        let (client, connection) = tokio_postgres::connect(&parameters, tokio_postgres::NoTls).await.unwrap();
        #[expect(clippy::disallowed_methods, reason = "ends with the client")]
        tokio::spawn(connection);
        client
    }
}

/// Debian's package libfaketime, which the program faketime preloads.
fn libfaketime() -> std::path::PathBuf {
    let folders = std::fs::read_dir("/usr/lib").unwrap().flatten();
    let mut files = folders.map(|folder| folder.path().join("faketime/libfaketime.so.1"));
    files.find(|file| file.exists()).expect("there is no libfaketime: run scripts/setup test")
}

/// Free local ports, so that tests beside each other and a PostgreSQL of the machine do not meet.
pub(crate) fn ports() -> [String; 4] {
    let option = || "--local-port".to_owned();
    let port = |target: &str| format!("{target}={}", port::free().unwrap());
    [option(), port("orders"), option(), port("orders-admin")]
}

pub(crate) async fn up(world: &World) -> Up {
    up_with(world, &[]).await
}

pub(crate) async fn up_with(world: &World, more: &[&str]) -> Up {
    let ports = ports();
    let mut arguments: Vec<&str> = ports.iter().map(String::as_str).collect();
    arguments.extend(more);
    Up::start(world, &arguments).await
}

pub(crate) fn running(world: &World) -> usize {
    world.sandbox.tasks().iter().filter(|(_, status)| *status != "STOPPED").count()
}

fn change(knobs: Option<Knobs>, event: Option<Event>) -> Change {
    Change { session: None, knobs, event }
}

#[tokio::test]
async fn up_brings_psql_to_the_database_and_leaves_nothing() {
    let world = World::start().await;
    let up = up_with(&world, &["--reason", "INC-123 (näh)"]).await;
    let (code, out, err) = up.psql("orders", "select current_user, count(*) from orders").await;
    assert_eq!((code, out.as_str()), (0, "db_read|1000"), "{err}");
    let (code, _, err) = up.psql("orders-admin", "select 1").await;
    assert!(code == 2 && err.contains("refused the IAM login of db_admin"), "{err}");
    let task = world.sandbox.tasks()[0].0.clone();
    let log = world.sandbox.task_log(&task);
    assert!(log.contains("assumed-role/Developer/alice") && log.contains("INC-123 (näh)"), "{log}");
    // A tag takes no parentheses; a session's reason takes everything.
    assert_eq!(world.sandbox.task_tag(&task, "bastion:reason").as_deref(), Some("INC-123 _näh_"));
    assert_eq!(world.sandbox.session_reasons()[0].as_deref(), Some("INC-123 (näh)"));
    assert_eq!(running(&world), 1);
    let (code, events) = up.end().await;
    assert_eq!(code, Some(0));
    assert!(events.iter().any(|event| event["event"] == "closed"), "{events:?}");
    assert_eq!(running(&world), 0);
    assert!(world.sandbox.gateway().session_ids().is_empty());
    world.stop().await;
}

#[tokio::test]
async fn a_second_up_joins_and_does_not_stop_what_it_has_not_started() {
    let world = World::start().await;
    let first = up(&world).await;
    let second = up(&world).await;
    assert_eq!(first.ready["task"], second.ready["task"]);
    assert_ne!(first.port("orders"), second.port("orders"));
    assert_eq!(second.end().await.0, Some(0));
    assert_eq!(running(&world), 1);
    assert_eq!(first.psql("orders", "select 1").await.0, 0);
    // Another person does not join alice's task.
    let (code, _, err) = finish(bastion(&world, "bob", &["connect", "demo"])).await;
    assert!(
        code == 1 && err.contains("you have no running bastion for demo") && err.contains("bastion up demo"),
        "{err}"
    );
    assert_eq!(first.end().await.0, Some(0));
    assert_eq!(running(&world), 0);
    world.stop().await;
}

#[tokio::test]
async fn keep_and_detach_leave_it_running_until_down() {
    let world = World::start().await;
    let up = up_with(&world, &["--keep"]).await;
    assert_eq!(up.end().await.0, Some(0));
    assert_eq!(running(&world), 1);
    let ports = ports();
    let mut detached = bastion(&world, "alice", &["up", "demo", "--json", "--detach"]);
    detached.args(&ports);
    let (code, out, err) = finish(detached).await;
    assert_eq!(code, 0, "{err}");
    let ready: Value = serde_json::from_str(out.lines().last().unwrap()).unwrap();
    let port = ready["targets"][0]["port"].to_string();
    let mut psql = Command::new("psql");
    psql.args(["-X", "-A", "-t", "-w", "-h", "localhost", "-U", "x", "-p", &port, "-c", "select 1"]);
    assert_eq!(finish(psql).await.1, "1");
    // Its log is where nobody else can read it or put a link in its place.
    let state = world.folder.path().join(".local/state/bastion");
    let log = state.join(format!("{}-1.log", ready["task"].as_str().unwrap()));
    let mode = |path: &std::path::Path| std::fs::metadata(path).unwrap().permissions().mode() & 0o777;
    assert_eq!((mode(&state), mode(&log)), (0o700, 0o600));
    assert!(out.contains(&log.display().to_string()), "{out}");
    let (code, out, _) = finish(bastion(&world, "alice", &["status", "demo", "--json"])).await;
    let status: Value = serde_json::from_str(&out).unwrap();
    assert_eq!((code, status["tasks"][0]["status"].as_str()), (0, Some("RUNNING")));
    let (code, _, err) = finish(bastion(&world, "alice", &["down", "demo"])).await;
    assert_eq!(code, 0, "{err}");
    assert_eq!(running(&world), 0);
    // The background process ends with the task: its port is closed.
    let closed = async {
        while TcpStream::connect(("127.0.0.1", port.parse::<u16>().unwrap())).await.is_ok() {
            tokio::time::sleep(Duration::from_millis(50)).await;
        }
    };
    tokio::time::timeout(PATIENCE, closed).await.unwrap();
    world.stop().await;
}

#[tokio::test]
async fn a_log_that_cannot_be_written_safely_ends_the_start_and_harms_no_file() {
    let world = World::start().await;
    // Somebody has put a link to the person's own files in the place of the state folder.
    let kept = world.folder.path().join("kept");
    std::fs::create_dir(&kept).unwrap();
    std::fs::create_dir_all(world.folder.path().join(".local/state")).unwrap();
    std::os::unix::fs::symlink(&kept, world.folder.path().join(".local/state/bastion")).unwrap();
    let mut detached = bastion(&world, "alice", &["up", "demo", "--detach"]);
    detached.args(ports());
    let (code, _, err) = finish(detached).await;
    assert_eq!(code, 1, "{err}");
    for part in ["the state folder", "it is a link or not a folder", "XDG_STATE_HOME"] {
        assert!(err.contains(part), "{part} is not in {err}");
    }
    assert_eq!((std::fs::read_dir(&kept).unwrap().count(), running(&world)), (0, 0));
    world.stop().await;
}

#[tokio::test]
async fn callers_and_names_that_do_not_work_are_told_why() {
    let world = World::start().await;
    const PROD: &str = "[env.prod]\nregion = 'ap-northeast-1'\n[env.prod.access.read]\ntask_definition = 'bastion-nothing'\nsubnets = ['subnet-1']\n";
    std::fs::write(world.folder.path().join("bastion.toml"), PROD).unwrap();
    let cases: [(&str, &[&str], i32, &[&str]); 7] = [
        ("nobody", &["up", "demo"], 1, &["no AWS credentials", "aws sso login"]),
        ("carol", &["up", "demo"], 1, &["expired", "AWS_ACCESS_KEY_ID", "set new ones"]),
        ("eve", &["up", "demo"], 1, &["access denied", "ecs:ListTasks", "developer policy"]),
        ("alice", &["up", "prdo"], 64, &["there is no environment \"prdo\"", "did you mean \"prod\"?"]),
        ("alice", &["up", "demo", "--access", "admin"], 64, &["no access level \"admin\"", "read, write"]),
        ("alice", &["up", "demo", "--cluster", "other"], 1, &["no ECS cluster other"]),
        ("alice", &["up", "prod", "--cluster", "bastion"], 1, &["no active task definition bastion-nothing"]),
    ];
    for (caller, arguments, wanted, parts) in cases {
        let mut command = bastion(&world, caller, arguments);
        command.env("BASTION_TRUST", sha256(PROD));
        let (code, out, err) = finish(command).await;
        assert_eq!((code, out.as_str()), (wanted, ""), "{arguments:?}: {err}");
        for part in parts {
            assert!(err.contains(part), "{arguments:?}: {part} is not in {err}");
        }
    }
    assert_eq!(running(&world), 0);
    world.stop().await;
}

#[tokio::test]
async fn an_expired_login_of_identity_center_names_the_command_that_renews_it() {
    let world = World::start().await;
    let aws = world.folder.path().join(".aws");
    std::fs::create_dir_all(aws.join("sso/cache")).unwrap();
    std::fs::write(
        aws.join("config"),
        "[sso-session company]\nsso_region = eu-west-1\nsso_start_url = https://company.awsapps.com/start\n\
         [profile work]\nsso_session = company\nsso_account_id = 123456789012\nsso_role_name = Developer\n",
    )
    .unwrap();
    // The file name is the SHA-1 of the session's name (AWS SDKs and Tools Reference Guide, "IAM Identity Center").
    std::fs::write(
        aws.join("sso/cache/71b21161ffa1e6516bcc072aaf5ef38cbe85b511.json"),
        r#"{"accessToken":"old","expiresAt":"2026-01-01T00:00:00Z","region":"eu-west-1","startUrl":"https://company.awsapps.com/start"}"#,
    )
    .unwrap();
    let (code, _, err) = finish(bastion(&world, "nobody", &["up", "demo", "--profile", "work"])).await;
    assert!(code == 1 && err.contains("aws sso login --profile work"), "{code} {err}");
    assert_eq!(running(&world), 0);
    world.stop().await;
}

#[tokio::test]
async fn a_task_that_does_not_come_up_is_explained_and_not_left_behind() {
    let world = World::start().await;
    let cases = [
        (
            Faults {
                run_task_failure: Some("Capacity is unavailable at this time. Please try again later".into()),
                ..Faults::default()
            },
            ["Capacity is unavailable", "try again in a minute"],
        ),
        (
            Faults {
                start_failure: Some("CannotPullContainerError: pull image manifest has been retried".into()),
                ..Faults::default()
            },
            ["CannotPullContainerError", "check the image in the task definition"],
        ),
    ];
    for (faults, parts) in cases {
        world.sandbox.set_faults(faults);
        let (code, _, err) = finish(bastion(&world, "alice", &["up", "demo"])).await;
        assert_eq!(code, 1);
        for part in parts {
            assert!(err.contains(part), "{part} is not in {err}");
        }
        assert_eq!(running(&world), 0);
    }
    world.stop().await;
}

#[tokio::test]
async fn an_agent_that_never_runs_ends_the_wait_with_its_causes_and_nothing_is_left() {
    let world = World::start().await;
    world.sandbox.set_faults(Faults { agent_never_runs: true, ..Faults::default() });
    let (code, out, err) = finish(bastion(&world, "alice", &["up", "demo", "--timeout", "2s"])).await;
    assert_eq!((code, out.as_str()), (1, ""), "{err}");
    // The limit of the person is the cause, so roles and subnets are not blamed.
    let parts = [
        "the ExecuteCommandAgent in container \"bastion\"",
        "is PENDING after",
        ": the agent cannot reach its endpoint",
        "--timeout left",
    ];
    for part in parts {
        assert!(err.contains(part), "{part} is not in {err}");
    }
    assert_eq!(running(&world), 0);
    world.stop().await;
}

#[tokio::test]
async fn an_agent_that_starts_again_is_waited_for_and_that_of_another_container_does_not_count() {
    let world = World::start().await;
    let again = Some(Duration::from_secs(2));
    world.sandbox.set_faults(Faults { sidecar: true, agent_restarts_after: again, ..Faults::default() });
    let up = Up::start(&world, &[]).await;
    assert_eq!(up.psql("orders", "select 1").await, (0, "1".to_owned(), String::new()));
    assert_eq!(up.end().await.0, Some(0));
    assert_eq!(running(&world), 0);
    world.stop().await;
}

#[tokio::test]
async fn a_relay_that_rejects_its_configuration_is_told_as_such() {
    let world = World::start_with(Flaws::default(), |config| {
        config.task_definitions[0].environment.insert("BASTION_CONFIG".to_owned(), "{}".to_owned());
    })
    .await;
    let (code, _, err) = finish(bastion(&world, "alice", &["up", "demo"])).await;
    assert_eq!(code, 1, "{err}");
    for part in ["ended with exit 64", "the relay's configuration (BASTION_CONFIG in the task definition) has mistakes"]
    {
        assert!(err.contains(part), "{part} is not in {err}");
    }
    assert_eq!(running(&world), 0);
    world.stop().await;
}

#[tokio::test]
async fn a_wrong_clock_of_the_laptop_is_corrected_by_the_answers_of_aws() {
    let world = World::start().await;
    let ports = ports();
    let mut command = bastion(&world, "alice", &["up", "demo", "--json"]);
    // Only the time of day is wrong; the timers of the kernel are not.
    command.args(&ports).env("LD_PRELOAD", libfaketime()).env("FAKETIME", "+3600").env("DONT_FAKE_MONOTONIC", "1");
    let up = Up::of(command).await;
    assert_eq!(up.psql("orders", "select 1").await.0, 0);
    assert_eq!(up.end().await.0, Some(0));
    world.stop().await;
}

#[tokio::test]
async fn garbage_on_a_local_port_harms_nobody_else() {
    let world = World::start().await;
    let up = up(&world).await;
    let client = up.client().await;
    for garbage in [&b"GET / HTTP/1.1\r\n\r\n"[..], &[0x40, 0, 0, 0, 0, 3, 0, 0], &[0xff; 64]] {
        let mut stream = TcpStream::connect(("127.0.0.1", up.port("orders"))).await.unwrap();
        stream.write_all(garbage).await.unwrap();
        let mut answer = Vec::new();
        tokio::time::timeout(PATIENCE, stream.read_to_end(&mut answer)).await.unwrap().unwrap();
        // No answer, as from the server.
        assert_eq!(String::from_utf8_lossy(&answer), "");
    }
    // One that says nothing and one that leaves at once.
    let silent = TcpStream::connect(("127.0.0.1", up.port("orders"))).await.unwrap();
    drop(TcpStream::connect(("127.0.0.1", up.port("orders"))).await.unwrap());
    assert_eq!(client.query_one("select 3", &[]).await.unwrap().get::<_, i32>(0), 3);
    assert_eq!(up.psql("orders", "select 1").await.0, 0);
    drop((client, silent));
    assert_eq!(up.end().await.0, Some(0));
    world.stop().await;
}

#[tokio::test]
async fn ctrl_c_while_waiting_stops_the_task_that_was_started() {
    let world = World::start().await;
    world.sandbox.set_faults(Faults { agent_never_runs: true, ..Faults::default() });
    let mut child = bastion(&world, "alice", &["up", "demo"]).stderr(Stdio::piped()).spawn().unwrap();
    let waiting = async {
        while !world.sandbox.tasks().iter().any(|(_, status)| *status == "RUNNING") {
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
    };
    tokio::time::timeout(PATIENCE, waiting).await.unwrap();
    let pid = rustix::process::Pid::from_raw(i32::try_from(child.id().unwrap()).unwrap()).unwrap();
    rustix::process::kill_process(pid, rustix::process::Signal::INT).unwrap();
    let status = tokio::time::timeout(PATIENCE, child.wait()).await.unwrap().unwrap();
    assert_eq!(status.code(), Some(130));
    assert_eq!(running(&world), 0);
    world.stop().await;
}

#[tokio::test]
async fn a_connection_survives_cuts_of_the_websocket() {
    let world = World::start().await;
    let up = up(&world).await;
    let client = up.client().await;
    let faults = world.sandbox.gateway().faults();
    for event in [Event::CutClient, Event::Bye, Event::CutClient, Event::CutAgent] {
        faults.apply(&change(None, Some(event))).unwrap();
        let query = client.query_one("select sum(id)::bigint from orders", &[]);
        let row = tokio::time::timeout(PATIENCE, query).await.expect("the connection is stuck").unwrap();
        assert_eq!(row.get::<_, i64>(0), 500_500);
    }
    drop(client);
    let (code, events) = up.end().await;
    assert_eq!(code, Some(0));
    let closed = events.iter().find(|event| event["event"] == "closed").unwrap();
    assert!(closed["reconnects"].as_u64().unwrap() >= 3, "{closed}");
    world.stop().await;
}

#[tokio::test]
async fn credentials_that_expire_under_a_connection_are_asked_for_and_the_connection_goes_on() {
    let world = World::start_with(Flaws::default(), |config| {
        let mut expired = config.identities[0].clone();
        expired.access_key = "ASIAALICEEXPIRED0000".to_owned();
        expired.expires_at = Some(std::time::SystemTime::UNIX_EPOCH);
        config.identities.push(expired);
    })
    .await;
    // A login as people have it: whatever the profile's program prints is asked for again when it has run out.
    let login = world.folder.path().join("login.json");
    let log_in = |good: bool| {
        let alice = &world.config.identities[0];
        let key = if good { alice.access_key.as_str() } else { "ASIAALICEEXPIRED0000" };
        #[expect(clippy::disallowed_methods, reason = "credentials run out at a time of day")]
        let soon = humantime::format_rfc3339_seconds(std::time::SystemTime::now() + Duration::from_secs(5));
        let json = serde_json::json!({"Version": 1, "AccessKeyId": key, "SecretAccessKey": alice.secret_key,
            "SessionToken": alice.session_token, "Expiration": soon.to_string()});
        std::fs::write(&login, json.to_string()).unwrap();
    };
    let aws = world.folder.path().join(".aws");
    std::fs::create_dir(&aws).unwrap();
    let profile = format!("[profile work]\ncredential_process = /bin/cat {}\n", login.display());
    std::fs::write(aws.join("config"), profile).unwrap();
    log_in(true);
    let mut command = bastion(&world, "nobody", &["up", "demo", "--json", "--profile", "work"]);
    command.args(ports());
    let mut up = Up::of(command).await;
    let client = up.client().await;
    log_in(false);
    // Again and again: lanes are opened one after the other, and all of them must be lost.
    let cutting = async {
        loop {
            world.sandbox.gateway().faults().apply(&change(None, Some(Event::CutClient))).unwrap();
            tokio::time::sleep(Duration::from_millis(300)).await;
        }
    };
    let asked = async {
        while let Some(line) = up.lines.next_line().await.unwrap() {
            let event: Value = serde_json::from_str(&line).unwrap();
            if event["message"]
                .as_str()
                .is_some_and(|text| text.contains("log in to the program of credential_process"))
            {
                return event["state"].clone();
            }
        }
        panic!("it ended");
    };
    let asked = tokio::time::timeout(PATIENCE, async {
        tokio::select! {
            state = asked => state,
            () = cutting => unreachable!(),
        }
    });
    assert_eq!(asked.await.unwrap(), "reconnecting");
    log_in(true);
    let query = client.query_one("select 42", &[]);
    let row = tokio::time::timeout(PATIENCE, query).await.expect("the connection is stuck").unwrap();
    assert_eq!(row.get::<_, i32>(0), 42);
    up.event(|event| event["state"] == "connected").await;
    drop(client);
    assert_eq!(up.end().await.0, Some(0));
    world.stop().await;
}

#[tokio::test]
async fn sessions_that_are_over_are_replaced_under_an_open_connection() {
    let world = World::start().await;
    let up = up(&world).await;
    let client = up.client().await;
    let gateway = world.sandbox.gateway();
    let first = gateway.session_ids();
    for id in &first {
        assert!(gateway.terminate_session(id));
    }
    // Both ends of the link live on, so its connections do too; a new one comes through as well.
    let query = client.query_one("select 6", &[]);
    let row = tokio::time::timeout(PATIENCE, query).await.expect("the connection is stuck").unwrap();
    assert_eq!(row.get::<_, i32>(0), 6);
    assert_eq!(up.psql("orders", "select current_user").await.1, "db_read");
    // Each of them, also where its socket was gone before the word that it is over.
    let replaced = async {
        while gateway.session_ids().iter().filter(|id| !first.contains(id)).count() < first.len() {
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
    };
    tokio::time::timeout(PATIENCE, replaced).await.expect("a lane is missing");
    drop(client);
    assert_eq!(up.end().await.0, Some(0));
    assert!(gateway.session_ids().is_empty());
    world.stop().await;
}

#[tokio::test]
async fn wake_starts_a_new_task_for_the_next_connection_and_stops_it_at_the_end() {
    let world = World::start().await;
    let mut up = up_with(&world, &["--wake"]).await;
    let first = up.ready["task"].as_str().unwrap().to_owned();
    world.sandbox.stop_directly(&first);
    let asleep = up.event(|event| event["state"] == "asleep").await;
    let message = asleep["message"].as_str().unwrap();
    assert!(message.starts_with(&format!("asleep until the next connection: task {first} has stopped")), "{message}");
    // Nothing runs until somebody wants it.
    assert_eq!(running(&world), 0);
    assert_eq!(up.psql("orders", "select current_user").await.1, "db_read");
    for state in ["waking", "connected"] {
        up.event(|event| event["state"] == state).await;
    }
    assert_eq!(running(&world), 1);
    assert_eq!(up.end().await.0, Some(0));
    assert_eq!(running(&world), 0);
    world.stop().await;
}

#[tokio::test]
async fn bytes_stay_right_on_a_bad_network() {
    let world = World::start().await;
    let odds = Odds { drop: 0.02, duplicate: 0.02, reorder: 0.05, ..Odds::default() };
    let path = Path { latency_ms: 5, data: odds, ack: odds, ..Path::default() };
    let bad = Knobs { up: path.clone(), down: path, cut_client_every_ms: Some(1500), ..Knobs::default() };
    let up = up(&world).await;
    world.sandbox.gateway().faults().apply(&change(Some(bad), None)).unwrap();
    let client = up.client().await;
    let text: String = (0..60_000).map(|n| char::from(b'a' + u8::try_from(n * 7 % 26).unwrap())).collect();
    let query = async { client.query_one("select $1::text || $1::text, md5($1::text)", &[&text]).await };
    let row = tokio::time::timeout(3 * PATIENCE, query).await.expect("the connection is stuck").unwrap();
    assert!(row.get::<_, String>(0) == text.repeat(2));
    let sum = client.query_one("select md5($1::text)", &[&text]).await.unwrap();
    assert_eq!(sum.get::<_, String>(0), row.get::<_, String>(1));
    drop(client);
    assert_eq!(up.end().await.0, Some(0));
    world.stop().await;
}

#[tokio::test]
async fn a_task_that_ends_is_told_with_its_story_and_clients_hear_it() {
    let world = World::start().await;
    let up = up(&world).await;
    let mut silent = TcpStream::connect(("127.0.0.1", up.port("orders"))).await.unwrap();
    silent.write_all(b"\0\0\0\x15\0\x03\0\0user\0anyone\0\0").await.unwrap();
    let mut first = [0; 1];
    silent.read_exact(&mut first).await.unwrap();
    let id = up.ready["task"].as_str().unwrap().to_owned();
    world.sandbox.stop_directly(&id);
    let (code, said) = up.ended().await;
    assert_eq!(code, Some(1));
    assert!(said.contains(&format!("task {id} has stopped")) && said.contains("bastion up demo"), "{said}");
    let mut rest = Vec::new();
    tokio::time::timeout(PATIENCE, silent.read_to_end(&mut rest)).await.unwrap().unwrap();
    let rest = String::from_utf8_lossy(&rest);
    assert!(rest.contains("SFATAL\0") && rest.contains("C57P01\0") && rest.contains("Dbastion: "), "{rest:?}");
    world.stop().await;
}
