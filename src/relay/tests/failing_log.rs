//! An audit log that fails under a session, and what its client hears.

use std::sync::atomic::{AtomicBool, Ordering};

use bastion_wire::mysql::packet::ERR;

use super::pipelined::{CHANGE, Raw};
use super::*;

/// Fails while it is told to.
#[derive(Clone, Default)]
struct Log(Arc<AtomicBool>);

impl std::io::Write for Log {
    fn write(&mut self, bytes: &[u8]) -> std::io::Result<usize> {
        if self.0.load(Ordering::Relaxed) { Err(std::io::ErrorKind::BrokenPipe.into()) } else { Ok(bytes.len()) }
    }

    fn flush(&mut self) -> std::io::Result<()> {
        Ok(())
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_client_hears_why_when_a_record_of_its_session_cannot_be_written() {
    let folder = tempfile::tempdir().unwrap();
    let database = MariaDb::start(folder.path(), &verifier(folder.path()), Flaws::default()).await.unwrap();
    let listen = Ipv4Addr::new(127, 63, 100, 11);
    let users = ["native_user"];
    let mut config = config_for(Engine::Mysql, mariadb::HOST, database.port, &database.ca_file, listen, &users);
    config.audit.statements = true;
    let log = Log::default();
    let (drain, now) = (CancellationToken::new(), CancellationToken::new());
    let relay = bind_with(config, drain.clone(), now.clone(), log.clone(), |target| {
        Ok(Logins::Shared(Arc::new(Cache::new(Source::Fixed(Fixed::new(&target.name, mariadb::PASSWORD))))))
    });
    let relay = relay.await.unwrap();
    let shared = Arc::clone(&relay.shared);
    #[expect(clippy::disallowed_methods, reason = "joined by the test")]
    let serving = tokio::spawn(relay.serve());
    // A statement, and a command that the relay answers itself.
    let query = [&[3][..], b"select 2"].concat();
    for next in [query.as_slice(), CHANGE] {
        let mut client = Raw::login(listen, 0).await;
        log.0.store(true, Ordering::Relaxed);
        client.ask("do 1").await;
        // Behind the records so far, which are lost now.
        shared.audit.other(b"\n".to_vec()).await;
        client.write(&[(0, next)]).await;
        let mut said = client.read().await.payload;
        while said.first() != Some(&ERR) {
            said = client.read().await.payload;
        }
        let said = String::from_utf8_lossy(&said).into_owned();
        assert!(said.contains("the audit log cannot be written"), "{said}");
        log.0.store(false, Ordering::Relaxed);
    }
    drain.cancel();
    assert_eq!(serving.await.unwrap(), Ended::Signal);
    database.stop().await;
}
