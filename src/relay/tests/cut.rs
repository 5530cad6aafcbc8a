//! A task that stops while a MySQL client is being let in again, at each step of that.

use bastion_wire::mysql::capability::DEPRECATE_EOF;
use bastion_wire::mysql::door::SWITCH;
use bastion_wire::mysql::packet::ErrPacket;
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::TcpListener;
use tokio::sync::{Notify, watch};

use super::pipelined::{CHANGE, Raw};
use super::*;

/// The way of one connection to the database at `port`, which answers nothing while `silent`. `asked` is told what it is asked then.
async fn line(listener: TcpListener, port: u16, silent: watch::Receiver<bool>, asked: Arc<Notify>) {
    let (mut near, _) = listener.accept().await.unwrap();
    let mut far = TcpStream::connect(("127.0.0.1", port)).await.unwrap();
    let ((mut near_read, mut near_write), (mut far_read, mut far_write)) = (near.split(), far.split());
    let up = async {
        let mut buffer = [0; 4096];
        while let Ok(read @ 1..) = near_read.read(&mut buffer).await {
            far_write.write_all(&buffer[..read]).await.unwrap();
            if *silent.borrow() {
                asked.notify_one();
            }
        }
    };
    let down = async {
        let mut buffer = [0; 4096];
        while let Ok(read @ 1..) = far_read.read(&mut buffer).await {
            if *silent.borrow() {
                std::future::pending::<()>().await;
            }
            near_write.write_all(&buffer[..read]).await.unwrap();
        }
    };
    tokio::select! {
        () = up => {}
        () = down => {}
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_client_that_is_being_let_in_again_hears_why_its_session_ends() {
    let folder = tempfile::tempdir().unwrap();
    let database = MariaDb::start(folder.path(), &verifier(folder.path()), Flaws::default()).await.unwrap();
    for (last, proves) in [(10, false), (11, true)] {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let (port, listen) = (listener.local_addr().unwrap().port(), Ipv4Addr::new(127, 63, 100, last));
        let config = config_for(Engine::Mysql, mariadb::HOST, port, &database.ca_file, listen, &["native_user"]);
        let (drain, now) = (CancellationToken::new(), CancellationToken::new());
        let relay = bind_with(config, drain.clone(), now.clone(), std::io::sink(), |target| {
            Ok(Logins::Shared(Arc::new(Cache::new(Source::Fixed(Fixed::new(&target.name, mariadb::PASSWORD))))))
        });
        let relay = relay.await.unwrap();
        let (silence, silent) = watch::channel(false);
        let asked = Arc::new(Notify::new());
        let client = async {
            let mut client = Raw::login(listen, DEPRECATE_EOF).await;
            client.ask("do 1").await;
            silence.send_replace(true);
            client.write(&[(0, CHANGE)]).await;
            let switch = client.read().await;
            assert_eq!((switch.sequence, switch.payload.first()), (1, Some(&SWITCH)));
            if proves {
                client.write(&[(2, &[])]).await;
                asked.notified().await;
            }
            drain.cancel();
            now.cancel();
            // Number 2 is the client's, whether it has sent it or not.
            let said = client.read().await;
            assert_eq!(said.sequence, 3);
            let mut rest = Vec::new();
            client.stream.read_to_end(&mut rest).await.unwrap();
            assert!(rest.is_empty() && client.buffer.is_empty());
            ErrPacket::parse(&said.payload)
        };
        let (_, (), said) = tokio::join!(relay.serve(), line(listener, database.port, silent, asked.clone()), client);
        assert_eq!((said.number, said.sqlstate.as_deref()), (1053, Some("08S01")));
        let start = "Server shutdown in progress. bastion: this connection to target native_user is closed";
        assert!(said.message.starts_with(start), "{}", said.message);
    }
    database.stop().await;
}
