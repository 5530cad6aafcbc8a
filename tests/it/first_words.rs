//! What a person hears first when something is not as it should be: their own mistake, not its consequence.

use std::ffi::OsStr;
use std::os::unix::ffi::OsStrExt as _;
use std::path::PathBuf;

use crate::support::{World, finish};
use crate::up::{bastion, running};

/// The person's own file, which needs no trust.
fn own_file(world: &World) -> PathBuf {
    let folder = world.folder.path().join(".config/bastion");
    std::fs::create_dir_all(&folder).unwrap();
    folder.join("bastion.toml")
}

#[tokio::test]
async fn a_mistake_in_the_files_comes_before_what_aws_says() {
    let world = World::start().await;
    let file = own_file(&world);
    let level = "task_definition = 'bastion-nothing'\nsubnets = ['subnet-1']\n";
    let good = format!("[env.prod]\nregion = 'ap-northeast-1'\n[env.prod.access.read]\n{level}");
    let cases = [
        (
            good.clone(),
            "prdo",
            &["no bastion.toml names an environment \"prdo\"", "did you mean \"prod\"?", "credentials"][..],
        ),
        (good.replace("region", "regio"), "prod", &["env.prod.regio: is not a known key", "did you mean region?"]),
        (good.replace("[env.prod.access.read]", "[env.prod.access.read"), "other", &["is not TOML: line 3"]),
    ];
    for (text, name, parts) in cases {
        std::fs::write(&file, text).unwrap();
        let mut command = bastion(&world, "nobody", &["up", name]);
        if name == "prod" {
            command.env_remove("AWS_REGION").env_remove("AWS_DEFAULT_REGION");
        }
        let (code, _, err) = finish(command).await;
        assert_eq!(code, 64, "{name}: {err}");
        for part in parts {
            assert!(err.contains(part), "{name}: {part:?} is not in {err}");
        }
    }
    // An environment that only the account knows may be called nearly as one of a file.
    std::fs::write(&file, good.replace("prod", "demos")).unwrap();
    let (code, out, err) = finish(bastion(&world, "alice", &["grant-sql", "demo"])).await;
    assert!(code == 0 && out.contains("rds_iam"), "{err}");
    world.stop().await;
}

#[tokio::test]
async fn the_access_level_that_is_meant_is_found() {
    let world = World::start().await;
    let file = own_file(&world);
    let environment = |default: &str, levels: &[&str]| {
        let level = |level: &&str| {
            format!("[env.one.access.{level}]\ntask_definition = 'bastion-{level}'\nsubnets = ['subnet-1']\n")
        };
        format!("[env.one]\nregion = 'ap-northeast-1'\n{default}{}", levels.iter().map(level).collect::<String>())
    };
    for (default, levels, code, part) in [
        ("", &["admin"][..], 1, "no active task definition bastion-admin"),
        ("", &["admin", "read"], 1, "no active task definition bastion-read"),
        ("default_access = 'admin'\n", &["admin", "read"], 1, "no active task definition bastion-admin"),
        ("", &["admin", "oper"], 64, "name one with --access: admin, oper"),
        (
            "default_access = 'reed'\n",
            &["admin", "read"],
            64,
            "is \"reed\", which is no access level here; name one of admin, read",
        ),
    ] {
        std::fs::write(&file, environment(default, levels)).unwrap();
        let (status, _, err) = finish(bastion(&world, "alice", &["up", "one"])).await;
        assert!(status == code && err.contains(part), "{default}{levels:?}: {status} {err}");
    }
    world.stop().await;
}

#[tokio::test]
async fn folders_variables_and_limits_are_named() {
    let world = World::start().await;
    let gone = world.folder.path().join("gone");
    for command in [&["up", "demo"][..], &["connect", "demo"], &["down", "demo"], &["status"], &["grant-sql", "demo"]] {
        std::fs::create_dir(&gone).unwrap();
        let mut shell = bastion(&world, "alice", &[]);
        let program = shell.as_std().get_program().to_owned();
        shell = tokio::process::Command::new("sh");
        shell.args(["-c", "cd gone && rmdir ../gone && exec \"$0\" \"$@\""]).arg(program).args(command).env_clear();
        shell.current_dir(world.folder.path()).env("HOME", world.folder.path()).env("PATH", "/usr/bin:/bin");
        shell.envs(world.sandbox.variables("alice")).kill_on_drop(true);
        let (code, _, err) = finish(shell).await;
        assert!(code == 1 && err.contains("the current folder does not exist any more"), "{command:?}: {code} {err}");
    }
    for value in [&b" "[..], b"ap-northeast-1 ", b"ap-northeast-1\n", b"ap-\xff", b"AP NORTHEAST"] {
        let mut command = bastion(&world, "alice", &["status", "demo"]);
        command.env("BASTION_REGION", OsStr::from_bytes(value));
        let (code, _, err) = finish(command).await;
        assert!(code == 64 && err.contains("BASTION_REGION: is \""), "{value:?}: {code} {err}");
        assert!(err.contains("which is no region; write its name alone, for example eu-west-1"), "{value:?}: {err}");
    }
    assert_eq!(running(&world), 0);
    world.stop().await;
}
