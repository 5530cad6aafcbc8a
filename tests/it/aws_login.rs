//! Profiles, regions and logins as people have them, through the program: what works, and what is said where it does not.

use std::process::Stdio;

use bastion_sandbox::iam::{DEVELOPER, Identity};
use bastion_sandbox::postgres::Flaws;
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::process::Command;

use crate::support::{BASTION, PATIENCE, World, finish};
use crate::up::bastion;

/// A world whose home folder has these files of AWS.
async fn world(config: &str, credentials: &str, change: impl FnOnce(&mut bastion_sandbox::Config)) -> World {
    let world = World::start_with(Flaws::default(), change).await;
    let aws = world.folder.path().join(".aws");
    std::fs::create_dir(&aws).unwrap();
    std::fs::write(aws.join("config"), config).unwrap();
    std::fs::write(aws.join("credentials"), credentials).unwrap();
    world
}

/// The keys of a caller as lines of a profile.
fn keys(world: &World, caller: &str) -> String {
    let mut lines = String::new();
    for (name, value) in world.sandbox.variables(caller) {
        if name.contains("KEY") || name.contains("TOKEN") {
            lines += &format!("{} = {value}\n", name.to_lowercase());
        }
    }
    lines
}

/// `bastion` without keys and region in its environment, with these variables.
fn plain(world: &World, variables: &[(&str, &str)], arguments: &[&str]) -> Command {
    let mut command = Command::new(BASTION);
    command.args(arguments).env_clear().current_dir(world.folder.path()).env("HOME", world.folder.path());
    command.env("AWS_ENDPOINT_URL", world.sandbox.endpoint()).env("AWS_EC2_METADATA_DISABLED", "true");
    command.envs(variables.iter().copied()).kill_on_drop(true);
    command
}

#[tokio::test]
async fn profiles_of_every_form_lead_to_aws() {
    let world = world("", "", |_| ()).await;
    let keys = keys(&world, "alice");
    let program = world.folder.path().join("my tool");
    let variables = world.sandbox.variables("alice");
    let of = |name: &str| variables.iter().find(|(known, _)| *known == name).unwrap().1.clone();
    let json = format!(
        r#"{{"Version":1,"AccessKeyId":"{}","SecretAccessKey":"{}","SessionToken":"{}"}}"#,
        of("AWS_ACCESS_KEY_ID"),
        of("AWS_SECRET_ACCESS_KEY"),
        of("AWS_SESSION_TOKEN")
    );
    std::fs::write(world.folder.path().join("keys.json"), json).unwrap();
    std::fs::write(&program, "#!/bin/sh\nexec cat \"$HOME/keys.json\"\n").unwrap();
    std::fs::set_permissions(&program, std::os::unix::fs::PermissionsExt::from_mode(0o755)).unwrap();
    let config = format!(
        "\u{feff}[default]\r\nregion = ap-northeast-1 # Tokyo\r\n[profile \"with space\"]\n region = ap-northeast-1\n{keys}\n\
         [profile \"o'brien\"]\nregion=ap-northeast-1\n{keys}[profile müller#1]\nREGION: ap-northeast-1\n{keys}\n\
         [profile broken]\nregion eu-west-1\n[profile tool]\nregion = ap-northeast-1\ncredential_process = '{}' S3CRET\n",
        program.display()
    );
    std::fs::write(world.folder.path().join(".aws/config"), config).unwrap();
    std::fs::write(world.folder.path().join(".aws/credentials"), format!("[default]\n{keys}")).unwrap();
    let status = ["status", "demo", "--json"];
    for profile in ["default", "with space", "o'brien", "müller#1", "tool"] {
        for (variables, flag) in [(vec![("AWS_PROFILE", profile)], None), (vec![], Some(profile))] {
            let mut command = plain(&world, &variables, &status);
            command.args(flag.iter().flat_map(|name| ["--profile", name]));
            let (code, out, err) = finish(command).await;
            assert_eq!((code, out.as_str(), err.as_str()), (0, r#"{"tasks":[]}"#, ""), "{profile}");
        }
    }
    world.stop().await;
}

/// Variables, arguments, and what must be said.
type Case<'c> = (&'c [(&'c str, &'c str)], &'c [&'c str], &'c [&'c str]);

#[tokio::test]
async fn what_is_wrong_with_a_login_is_told_where_it_is() {
    let config = "[profile dev]\nregion = ap-northeast-1\n[profile bad]\nregion = ap-northeast-1\ncredential_process = /nowhere/tool S3CRET\n\
                  [profile two words]\nregion = r\n[profile line]\nregion eu-west-1\n\
                  [profile console]\nregion = ap-northeast-1\nlogin_session = arn:aws:iam::123456789012:user/alice\n\
                  [profile mfa]\nregion = ap-northeast-1\nrole_arn = arn:aws:iam::123456789012:role/MfaX\nsource_profile = base\n\
                  mfa_serial = arn:aws:iam::123456789012:mfa/alice\n[profile base]\naws_access_key_id = A\naws_secret_access_key = B\n\
                  [profile role]\nregion = ap-northeast-1\nrole_arn = arn:aws:iam::123456789012:role/Admin\nsource_profile = keys\n\
                  [profile nowhere]\nregion = eu west 1\n";
    let world = world(config, "", |_| ()).await;
    let file = world.folder.path().join(".aws/config");
    let keys = keys(&world, "alice");
    std::fs::write(&file, format!("{config}[profile keys]\n{keys}")).unwrap();
    let region = [("AWS_REGION", "ap-northeast-1")];
    let token =
        [region[0], ("AWS_WEB_IDENTITY_TOKEN_FILE", "/nowhere/token"), ("AWS_ROLE_ARN", "arn:aws:iam::1:role/ci")];
    let cases: [Case<'_>; 15] = [
        (&[], &[], &["no AWS region is set", "there is no profile default in", "/.aws/config", "dev"]),
        (&region, &[], &["no AWS credentials were found", "/.aws/credentials", "the profiles there are", "dev"]),
        (&region, &["--profile", "dve"], &["there is no AWS profile dve (--profile)", "did you mean dev?"]),
        (
            &[("AWS_PROFILE", "nosuch")],
            &[],
            &["there is no AWS profile nosuch (AWS_PROFILE)", "the profiles there are"],
        ),
        (&region, &["--profile", "two words"], &["line 6 of", "should be [profile \"two words\"]"]),
        (&region, &["--profile", "line"], &["the AWS profile line cannot be read: line 9 of", "has no ="]),
        (&region, &["--profile", "bad"], &["credential_process of AWS profile bad, /nowhere/tool, was not found"]),
        (&region, &["--profile", "console"], &["of profile console", "run `aws login --profile console`"]),
        (
            &region,
            &["--profile", "mfa"],
            &["asks for an MFA code, and there is no terminal", "aws configure export-credentials"],
        ),
        (
            &region,
            &["--profile", "role"],
            &["the role arn:aws:iam::123456789012:role/Admin of AWS profile role cannot be assumed", "trust policy"],
        ),
        (
            &[],
            &["--profile", "nowhere"],
            &["the region of AWS profile nowhere is \"eu west 1\", which is no AWS region"],
        ),
        (&[("AWS_REGION", " ")], &[], &["AWS_REGION is \" \", which is no AWS region"]),
        (&token, &[], &["AWS_WEB_IDENTITY_TOKEN_FILE names the file /nowhere/token"]),
        (&[region[0], ("AWS_ACCESS_KEY_ID", "A")], &[], &["AWS_ACCESS_KEY_ID is set and AWS_SECRET_ACCESS_KEY is not"]),
        (&[("AWS_ENDPOINT_URL", "")], &[], &["AWS_ENDPOINT_URL is set and is no URL"]),
    ];
    for (variables, arguments, parts) in cases {
        let mut command = plain(&world, variables, &["status", "demo"]);
        command.args(arguments);
        let (code, _, err) = finish(command).await;
        assert_eq!(code, 1, "{variables:?} {arguments:?}: {err}");
        for part in parts {
            assert!(err.contains(part), "{variables:?} {arguments:?}: {part} is not in {err}");
        }
        assert!(!err.contains("S3CRET"), "{err}");
    }
    // Bytes that are no text are not the same as nothing.
    let mut command = plain(&world, &[], &["status", "demo"]);
    command.env("BASTION_REGION", <std::ffi::OsStr as std::os::unix::ffi::OsStrExt>::from_bytes(b"eu-\xff"));
    let (_, _, err) = finish(command).await;
    assert!(err.contains("BASTION_REGION: is \"eu-\u{fffd}\", which is no region"), "{err}");
    world.stop().await;
}

#[tokio::test]
async fn keys_of_the_environment_that_have_ended_are_told_as_such() {
    let world = World::start().await;
    let (code, _, err) = finish(bastion(&world, "carol", &["status", "demo"])).await;
    assert_eq!(code, 1, "{err}");
    assert!(
        err.contains("of AWS_ACCESS_KEY_ID in the environment") && err.contains("keys in variables are not renewed"),
        "{err}"
    );
    world.stop().await;
}

#[tokio::test]
async fn an_environment_that_is_not_there_is_told_with_account_region_and_caller() {
    let world = World::start_with(Flaws::default(), |config| {
        config.identities[0].allow.push("ssm:GetParametersByPath".to_owned());
    })
    .await;
    let looked = |who: &str| {
        format!(
            "it was looked for in account 123456789012, region ap-northeast-1, as arn:aws:sts::123456789012:assumed-role/Developer/{who} with the keys of AWS_ACCESS_KEY_ID"
        )
    };
    let (code, _, err) = finish(bastion(&world, "alice", &["up", "payments"])).await;
    assert_eq!(code, 64, "{err}");
    assert!(err.contains(&looked("alice")) && err.contains("there the environments are demo"), "{err}");
    // Whoever may not list them is not told so.
    let (code, _, err) = finish(bastion(&world, "bob", &["up", "payments"])).await;
    assert!(code == 64 && err.contains(&looked("bob")) && !err.contains("denied") && !err.contains("demo"), "{err}");
    world.stop().await;
}

/// A role that wants MFA, assumed by dora.
async fn with_mfa() -> World {
    let base = "[profile base]\nregion = ap-northeast-1\n";
    let config = format!(
        "[profile mfa]\nregion = ap-northeast-1\nrole_arn = arn:aws:iam::123456789012:role/MfaDeveloper\nsource_profile = base\n\
         mfa_serial = arn:aws:iam::123456789012:mfa/dora\n{base}"
    );
    let world = world(&config, "", |config| {
        config.identities.push(Identity::session("Base", "dora", &["sts:AssumeRole"]));
        let mut session = Identity::session("MfaDeveloper", "dora", &DEVELOPER);
        session.access_key = "ASIAMFADORA000000000".to_owned();
        config.identities.push(session);
    })
    .await;
    let file = world.folder.path().join(".aws/credentials");
    std::fs::write(file, format!("[base]\n{}", keys(&world, "dora"))).unwrap();
    world
}

/// Runs `bastion` at a terminal, types `lines` whenever it asks, and returns what was on the screen.
async fn at_a_terminal(mut command: Command, lines: &[&str]) -> (i32, String) {
    command.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::null());
    let mut child = command.spawn().unwrap();
    let (mut input, mut output) = (child.stdin.take().unwrap(), child.stdout.take().unwrap());
    let mut screen = String::new();
    let session = async {
        let mut lines = lines.iter();
        let mut buffer = [0; 4096];
        let mut seen = 0;
        loop {
            let read = output.read(&mut buffer).await.unwrap_or(0);
            if read == 0 {
                break;
            }
            screen += &String::from_utf8_lossy(&buffer[..read]);
            let asked = screen.matches("MFA code of").count();
            if asked > seen {
                seen = asked;
                if let Some(line) = lines.next() {
                    input.write_all(format!("{line}\n").as_bytes()).await.unwrap();
                }
            }
        }
        child.wait().await.unwrap().code().unwrap_or(-1)
    };
    let code = tokio::time::timeout(3 * PATIENCE, session).await.expect("it hangs");
    (code, screen)
}

/// The same program with a terminal around it.
fn in_a_terminal(world: &World, arguments: &str) -> Command {
    let mut script = Command::new("script");
    script.args(["-qefc", &format!("{BASTION} {arguments}"), "/dev/null"]).env_clear().current_dir(world.folder.path());
    script.env("HOME", world.folder.path()).env("PATH", "/usr/bin:/bin").env("SHELL", "/bin/sh");
    script
        .env("AWS_ENDPOINT_URL", world.sandbox.endpoint())
        .env("AWS_EC2_METADATA_DISABLED", "true")
        .kill_on_drop(true);
    script
}

#[tokio::test]
async fn a_role_with_mfa_asks_for_the_code_once_and_is_the_same_session_each_time() {
    let world = with_mfa().await;
    // Twice: the owner of a task is the session, so another session would not find it.
    for _ in 0..2 {
        let (code, screen) =
            at_a_terminal(in_a_terminal(&world, "status demo --profile mfa"), &["000000", "123456"]).await;
        assert_eq!(code, 0, "{screen}");
        assert_eq!(
            screen.matches("MFA code of arn:aws:iam::123456789012:mfa/dora for AWS profile mfa: ").count(),
            2,
            "{screen}"
        );
        assert!(screen.contains("The code was not right."), "{screen}");
    }
    let (code, screen) = at_a_terminal(in_a_terminal(&world, "status demo --profile mfa"), &["1", "2", "3"]).await;
    assert!(code == 1 && screen.contains("STS did not take 3 MFA codes for AWS profile mfa"), "{screen}");
    world.stop().await;
}

#[tokio::test]
async fn a_code_of_mfa_is_good_for_the_tunnel_in_the_background_too() {
    let world = with_mfa().await;
    let (code, screen) = at_a_terminal(in_a_terminal(&world, "up demo --profile mfa --detach"), &["123456"]).await;
    assert_eq!((code, screen.matches("MFA code of").count()), (0, 1), "{screen}");
    assert!(screen.contains("assumed-role/MfaDeveloper/dora") && screen.contains("ready: demo"), "{screen}");
    // Another process is the same session and finds the task.
    let (code, screen) = at_a_terminal(in_a_terminal(&world, "down demo --profile mfa"), &["123456"]).await;
    assert_eq!(code, 0, "{screen}");
    assert!(world.sandbox.tasks().iter().all(|(_, status)| *status == "STOPPED"), "{screen}");
    world.stop().await;
}
