//! The driver against a gateway with an agent behind it, in this process, on loopback.

use std::io::ErrorKind;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use bastion_wire::smux::frame::{Command, Frame as MuxFrame};
use bastion_wire::ssm::message::{Message, MessageId, MessageType, PayloadType, SCHEMA_VERSION};
use bastion_wire::ssm::payload::{Acknowledge, Flag, HandshakeComplete, HandshakeRequest, RequestedAction, to_json};
use bytes::Bytes;
use futures_util::{SinkExt as _, StreamExt as _};
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::{mpsc, watch};
use tokio_tungstenite::WebSocketStream;
use tokio_tungstenite::tungstenite::Message as Frame;
use tokio_tungstenite::tungstenite::handshake::server::{Request, Response};
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;

use super::*;

const LINGER: Duration = Duration::from_secs(60);

/// What the test tells the agent.
#[derive(Debug)]
enum Order {
    /// Says `channel_closed` with this text.
    Close(&'static str),
    /// Drops the socket.
    Cut,
    /// Neither reads nor writes any more, but keeps the socket.
    Freeze,
}

/// The agent of one session; it outlives its sockets. A stream's first byte says what its target does: `e` echoes, `s`
/// swallows, `d` sends four megabytes and closes, `r` refuses.
#[derive(Default)]
struct Agent {
    greeted: bool,
    next_out: i64,
    unacked: std::collections::BTreeMap<i64, Bytes>,
    expected: i64,
    incoming: Vec<u8>,
    kinds: std::collections::BTreeMap<u32, u8>,
    opened: Vec<u32>,
    swallowed: usize,
    terminated: bool,
}

const DOWNLOAD: usize = 4 << 20;

impl Agent {
    fn message(message_type: MessageType, sequence: i64, payload_type: PayloadType, payload: Vec<u8>) -> Bytes {
        let (id, payload) = (MessageId(*uuid::Uuid::new_v4().as_bytes()), payload.into());
        Message {
            message_type,
            schema_version: SCHEMA_VERSION,
            created_ms: 1,
            sequence,
            flags: 0,
            id,
            payload_type,
            payload,
        }
        .to_frame()
    }

    fn send(&mut self, payload_type: PayloadType, payload: Vec<u8>, out: &mut Vec<Bytes>) {
        let frame = Self::message(MessageType::OutputStreamData, self.next_out, payload_type, payload);
        self.unacked.insert(self.next_out, frame.clone());
        self.next_out += 1;
        out.push(frame);
    }

    fn write(&mut self, command: Command, stream: u32, data: &[u8], out: &mut Vec<Bytes>) {
        let mut bytes = Vec::new();
        MuxFrame { command, stream, data: Bytes::copy_from_slice(data) }.encode(&mut bytes);
        for chunk in bytes.chunks(1024) {
            self.send(PayloadType::OUTPUT, chunk.to_vec(), out);
        }
    }

    /// A new socket: greets once, and sends again what is open.
    fn connected(&mut self) -> Vec<Bytes> {
        let mut out: Vec<Bytes> = self.unacked.values().cloned().collect();
        if !std::mem::replace(&mut self.greeted, true) {
            let request = HandshakeRequest {
                agent_version: "3.3.1142.0".to_owned(),
                requested_client_actions: vec![RequestedAction {
                    action_type: "SessionType".to_owned(),
                    action_parameters: serde_json::json!({"SessionType": "Port", "Properties": {"type": "LocalPortForwarding"}}),
                }],
            };
            self.send(PayloadType::HANDSHAKE_REQUEST, to_json(&request), &mut out);
        }
        out
    }

    fn handle(&mut self, frame: Bytes) -> Vec<Bytes> {
        let message = Message::decode(frame).unwrap();
        let mut out = Vec::new();
        if message.message_type == MessageType::Acknowledge {
            let ack = Acknowledge::decode(&message.payload).unwrap();
            self.unacked.remove(&ack.acknowledged_message_sequence_number);
            return out;
        }
        if message.sequence > self.expected {
            // This one keeps nothing beyond a gap.
            return out;
        }
        let ack = Acknowledge {
            acknowledged_message_type: "input_stream_data".into(),
            acknowledged_message_id: message.id.to_string().into(),
            acknowledged_message_sequence_number: message.sequence,
            is_sequential_message: true,
        };
        out.push(Self::message(MessageType::Acknowledge, 0, PayloadType::NONE, to_json(&ack)));
        if message.sequence == self.expected {
            self.expected += 1;
            self.take(message.payload_type, &message.payload, &mut out);
        }
        out
    }

    fn take(&mut self, payload_type: PayloadType, payload: &Bytes, out: &mut Vec<Bytes>) {
        match payload_type {
            PayloadType::HANDSHAKE_RESPONSE => {
                let complete = HandshakeComplete { handshake_time_to_complete: 1, customer_message: String::new() };
                self.send(PayloadType::HANDSHAKE_COMPLETE, to_json(&complete), out);
            }
            PayloadType::FLAG => self.terminated |= Flag::decode(payload) == Some(Flag::TerminateSession),
            _ => {
                self.incoming.extend_from_slice(payload);
                while let Some((frame, used)) = MuxFrame::decode(&self.incoming).unwrap() {
                    self.incoming.drain(..used);
                    self.take_mux(&frame, out);
                }
            }
        }
    }

    fn take_mux(&mut self, frame: &MuxFrame, out: &mut Vec<Bytes>) {
        let stream = frame.stream;
        match frame.command {
            Command::Syn => {
                assert!(!self.opened.contains(&stream), "a stream id came again");
                self.opened.push(stream);
            }
            Command::Psh => {
                let kind = *self.kinds.entry(stream).or_insert_with(|| frame.data[0]);
                match kind {
                    b'e' => self.write(Command::Psh, stream, &frame.data, out),
                    b'd' => {
                        for _ in 0..DOWNLOAD / 32_768 {
                            self.write(Command::Psh, stream, &[b'd'; 32_768], out);
                        }
                        self.write(Command::Fin, stream, b"", out);
                    }
                    b'r' => {
                        self.send(PayloadType::FLAG, Flag::ConnectToPortError.encode().to_vec(), out);
                        self.write(Command::Fin, stream, b"", out);
                    }
                    _ => self.swallowed += frame.data.len(),
                }
            }
            Command::Fin | Command::Nop => {}
        }
    }
}

/// A gateway on its own port for every grant, so that a reconnect to an old URL cannot work.
struct Gateway {
    agent: Mutex,
    orders: tokio::sync::Mutex<mpsc::Receiver<Order>>,
    grants: AtomicUsize,
    over: watch::Sender<bool>,
    tracker: TaskTracker,
}

type Mutex = std::sync::Mutex<Agent>;

impl Gateway {
    fn new() -> (Arc<Self>, mpsc::Sender<Order>) {
        let (sender, orders) = mpsc::channel(8);
        let gateway = Self {
            agent: Mutex::default(),
            orders: orders.into(),
            grants: AtomicUsize::new(0),
            over: watch::channel(false).0,
            tracker: TaskTracker::new(),
        };
        (Arc::new(gateway), sender)
    }

    async fn grant(self: &Arc<Self>) -> SessionGrant {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let number = self.grants.fetch_add(1, Ordering::SeqCst);
        let url = format!("ws://{}/v1/data-channel/s-1?role=publish_subscribe", listener.local_addr().unwrap());
        let gateway = Arc::clone(self);
        self.tracker.spawn(async move {
            let (stream, _) = listener.accept().await.unwrap();
            gateway.serve(stream, number).await;
        });
        SessionGrant { session_id: "s-1".to_owned(), token: format!("token-{number}").into(), stream_url: url.into() }
    }

    #[expect(clippy::result_large_err, reason = "the shape of tungstenite's callback")]
    async fn serve(&self, stream: TcpStream, number: usize) {
        stream.set_nodelay(true).unwrap();
        let check = |request: &Request, response: Response| {
            assert_eq!(request.headers()["authorization"], "signed");
            Ok(response)
        };
        let mut socket = tokio_tungstenite::accept_hdr_async(stream, check).await.unwrap();
        let Some(Ok(Frame::Text(open))) = socket.next().await else { panic!("no OpenDataChannel") };
        let open: serde_json::Value = serde_json::from_str(&open).unwrap();
        assert_eq!(open["TokenValue"], format!("token-{number}"));
        let first = self.agent.lock().unwrap().connected();
        let mut orders = self.orders.lock().await;
        if !send(&mut socket, first).await {
            return;
        }
        loop {
            tokio::select! {
                frame = socket.next() => {
                    let answers = match frame {
                        Some(Ok(Frame::Binary(frame))) => self.agent.lock().unwrap().handle(frame),
                        Some(Ok(_)) => continue,
                        _ => return,
                    };
                    if !send(&mut socket, answers).await {
                        return;
                    }
                }
                order = orders.recv() => match order {
                    Some(Order::Close(text)) => {
                        let payload = serde_json::json!({"Output": text}).to_string().into_bytes();
                        let frame = Agent::message(MessageType::ChannelClosed, 0, PayloadType::NONE, payload);
                        send(&mut socket, vec![frame]).await;
                    }
                    Some(Order::Cut) => return,
                    Some(Order::Freeze) => {
                        drop(orders);
                        self.over.subscribe().wait_for(|over| *over).await.unwrap();
                        return;
                    }
                    None => return,
                }
            }
        }
    }
}

async fn send(socket: &mut WebSocketStream<TcpStream>, frames: Vec<Bytes>) -> bool {
    for frame in frames {
        if socket.send(Frame::Binary(frame)).await.is_err() {
            return false;
        }
    }
    true
}

impl Control for Arc<Gateway> {
    fn sign_upgrade<'a>(
        &'a self,
        _url: &'a str,
        _now: SystemTime,
    ) -> BoxFuture<'a, Result<Vec<(String, SecretString)>, ControlError>> {
        Box::pin(async { Ok(vec![("Authorization".to_owned(), "signed".into())]) })
    }

    fn start(&self, _wanted: bool) -> BoxFuture<'_, Result<SessionGrant, StartError>> {
        Box::pin(async move { Err(StartError::Gone("the task is gone".to_owned())) })
    }

    fn resume<'a>(&'a self, session_id: &'a str) -> BoxFuture<'a, Result<Option<SessionGrant>, ControlError>> {
        assert_eq!(session_id, "s-1");
        Box::pin(async { if *self.over.borrow() { Ok(None) } else { Ok(Some(self.grant().await)) } })
    }
}

async fn open(config: Config) -> (Tunnel, Arc<Gateway>, mpsc::Sender<Order>) {
    let (gateway, orders) = Gateway::new();
    let grant = gateway.grant().await;
    let control = Arc::new(Arc::clone(&gateway));
    let tunnel = Tunnel::open(config, grant, control, CancellationToken::new()).await.unwrap();
    (tunnel, gateway, orders)
}

async fn echo(stream: &mut Stream, text: &[u8]) {
    stream.write_all(text).await.unwrap();
    let mut answer = vec![0; text.len()];
    stream.read_exact(&mut answer).await.unwrap();
    assert_eq!(answer, text);
}

async fn until(what: impl Fn() -> bool) {
    while !what() {
        tokio::time::sleep(Duration::from_millis(1)).await;
    }
}

#[tokio::test]
async fn many_connections_share_one_session() {
    let (tunnel, _gateway, _orders) = open(Config::default()).await;
    let mut streams: Vec<Stream> = (0..50).map(|_| tunnel.connect(LINGER).unwrap()).collect();
    for (number, stream) in streams.iter_mut().enumerate() {
        echo(stream, format!("e{number}").as_bytes()).await;
    }
    assert_eq!(tunnel.stats().streams, 50);
    tunnel.close().await;
}

#[tokio::test]
async fn streams_live_on_over_a_cut_and_ids_are_not_used_again() {
    let (tunnel, gateway, orders) = open(Config::default()).await;
    let mut stream = tunnel.connect(LINGER).unwrap();
    echo(&mut stream, b"e before").await;
    for cut in 1..4 {
        orders.send(Order::Cut).await.unwrap();
        echo(&mut stream, b"e after").await;
        until(|| tunnel.stats().reconnects == cut).await;
        echo(&mut tunnel.connect(LINGER).unwrap(), b"e new").await;
    }
    assert_eq!(gateway.grants.load(Ordering::SeqCst), 4, "every reconnect goes to the newest URL with its token");
    assert_eq!(gateway.agent.lock().unwrap().opened, [3, 5, 7, 9]);
    tunnel.close().await;
}

#[tokio::test]
async fn an_upload_survives_cuts_without_losing_a_byte() {
    let (tunnel, gateway, orders) = open(Config::default()).await;
    let mut stream = tunnel.connect(LINGER).unwrap();
    for _ in 0..3 {
        stream.write_all(&vec![b's'; 1 << 20]).await.unwrap();
        orders.send(Order::Cut).await.unwrap();
    }
    until(|| gateway.agent.lock().unwrap().swallowed == 3 << 20).await;
    tunnel.close().await;
}

#[tokio::test]
async fn a_link_on_which_nobody_answers_is_replaced() {
    let config =
        Config { ping_every: Duration::from_millis(50), pong_timeout: Duration::from_millis(100), ..Config::default() };
    let (tunnel, gateway, orders) = open(config).await;
    let mut stream = tunnel.connect(LINGER).unwrap();
    echo(&mut stream, b"e before").await;
    orders.send(Order::Freeze).await.unwrap();
    until(|| tunnel.stats().reconnects == 1).await;
    echo(&mut stream, b"e after").await;
    gateway.over.send_replace(true);
    tunnel.close().await;
}

#[tokio::test]
async fn the_end_of_the_session_is_an_error_for_every_stream_never_a_clean_end() {
    let (tunnel, _gateway, orders) = open(Config::default()).await;
    let mut stream = tunnel.connect(LINGER).unwrap();
    echo(&mut stream, b"e").await;
    orders.send(Order::Close("idle for too long")).await.unwrap();
    let error = stream.read_u8().await.unwrap_err();
    assert_eq!(error.kind(), ErrorKind::ConnectionReset);
    assert!(error.to_string().contains("idle for too long"), "{error}");
    let mut state = tunnel.state();
    let ended = state.wait_for(|state| matches!(state, State::Ended { .. })).await.unwrap().to_string();
    assert!(ended.contains("idle for too long"), "{ended}");
    tunnel.connect(LINGER).map(|_| ()).unwrap_err();
}

#[tokio::test]
async fn a_session_that_cannot_be_resumed_is_over() {
    let (tunnel, gateway, orders) = open(Config::default()).await;
    let mut stream = tunnel.connect(LINGER).unwrap();
    echo(&mut stream, b"e").await;
    gateway.over.send_replace(true);
    orders.send(Order::Cut).await.unwrap();
    assert_eq!(stream.read_u8().await.unwrap_err().kind(), ErrorKind::ConnectionReset);
}

#[tokio::test]
async fn a_refused_connection_names_its_cause() {
    let (tunnel, _gateway, _orders) = open(Config::default()).await;
    let mut stream = tunnel.connect(LINGER).unwrap();
    stream.write_all(b"r").await.unwrap();
    assert_eq!(stream.read_u8().await.unwrap_err().kind(), ErrorKind::ConnectionRefused);
    tunnel.close().await;
}

#[tokio::test]
async fn a_download_ends_cleanly_after_its_last_byte() {
    let (tunnel, _gateway, _orders) = open(Config::default()).await;
    let mut stream = tunnel.connect(LINGER).unwrap();
    stream.write_all(b"d").await.unwrap();
    stream.shutdown().await.unwrap();
    let mut all = Vec::new();
    stream.read_to_end(&mut all).await.unwrap();
    assert_eq!(all.len(), DOWNLOAD);
    tunnel.close().await;
}

#[tokio::test]
async fn a_reader_that_pauses_alone_holds_back_the_session_and_the_link_stays() {
    let config = Config {
        receive_bound: 64 * 1024,
        ping_every: Duration::from_millis(20),
        pong_timeout: Duration::from_millis(20),
        ..Config::default()
    };
    let (tunnel, _gateway, _orders) = open(config).await;
    let mut stream = tunnel.connect(LINGER).unwrap();
    stream.write_all(b"d").await.unwrap();
    until(|| tunnel.stats().down >= 64 * 1024).await;
    // Many ping times long.
    tokio::time::sleep(Duration::from_millis(300)).await;
    assert!(tunnel.stats().down < 256 * 1024, "more than the bound is read");
    assert_eq!(tunnel.stats().reconnects, 0, "a link that is not read is not dead");
    let mut all = Vec::new();
    stream.read_to_end(&mut all).await.unwrap();
    assert_eq!(all.len(), DOWNLOAD);
    tunnel.close().await;
}

#[tokio::test]
async fn a_reader_that_pauses_beside_others_harms_only_itself() {
    let (tunnel, _gateway, _orders) = open(Config { receive_bound: 64 * 1024, ..Config::default() }).await;
    let mut other = tunnel.connect(LINGER).unwrap();
    echo(&mut other, b"e before").await;
    let mut paused = tunnel.connect(LINGER).unwrap();
    paused.write_all(b"d").await.unwrap();
    echo(&mut other, b"e beside").await;
    echo(&mut tunnel.connect(LINGER).unwrap(), b"e new").await;
    let mut all = Vec::new();
    let error = paused.read_to_end(&mut all).await.unwrap_err();
    assert_eq!(error.kind(), ErrorKind::ConnectionReset, "cut short is never a clean end");
    tunnel.close().await;
}

#[tokio::test]
async fn a_new_connection_gets_past_a_paused_reader() {
    let (tunnel, _gateway, _orders) = open(Config { receive_bound: 64 * 1024, ..Config::default() }).await;
    let mut paused = tunnel.connect(LINGER).unwrap();
    paused.write_all(b"d").await.unwrap();
    until(|| tunnel.stats().down >= 64 * 1024).await;
    echo(&mut tunnel.connect(LINGER).unwrap(), b"e new").await;
    tunnel.close().await;
}

#[tokio::test]
async fn closing_tells_the_agent() {
    let (tunnel, gateway, _orders) = open(Config::default()).await;
    tunnel.close().await;
    until(|| gateway.agent.lock().unwrap().terminated).await;
}

#[tokio::test]
async fn closing_does_not_wait_for_a_link_that_is_down() {
    struct Down(Arc<Gateway>);
    impl Control for Down {
        fn sign_upgrade<'a>(
            &'a self,
            url: &'a str,
            now: SystemTime,
        ) -> BoxFuture<'a, Result<Vec<(String, SecretString)>, ControlError>> {
            self.0.sign_upgrade(url, now)
        }
        fn start(&self, wanted: bool) -> BoxFuture<'_, Result<SessionGrant, StartError>> {
            self.0.start(wanted)
        }
        fn resume<'a>(&'a self, _: &'a str) -> BoxFuture<'a, Result<Option<SessionGrant>, ControlError>> {
            Box::pin(std::future::pending())
        }
    }
    let (gateway, orders) = Gateway::new();
    let grant = gateway.grant().await;
    let control = Arc::new(Down(Arc::clone(&gateway)));
    let tunnel = Tunnel::open(Config::default(), grant, control, CancellationToken::new()).await.unwrap();
    orders.send(Order::Cut).await.unwrap();
    tunnel.state().wait_for(|state| matches!(state, State::Reconnecting { .. })).await.unwrap();
    // A new client is told, instead of waiting for as long as it is tried.
    let down = tunnel.up(Duration::from_millis(50)).await.unwrap_err().to_string();
    assert!(down.starts_with("the tunnel is reconnecting since 0 s: "), "{down}");
    tunnel.close().await;
}
