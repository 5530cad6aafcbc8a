//! The agent's side of smux 1: streams become TCP connections to the port.

use std::collections::HashMap;
use std::net::IpAddr;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use bastion_wire::smux::frame::{Command, Frame, MAX_AGENT_DATA};
use bastion_wire::ssm::message::PayloadType;
use bastion_wire::ssm::payload::Flag;
use bytes::Bytes;
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _, DuplexStream, ReadHalf, WriteHalf};
use tokio::net::TcpStream;
use tokio::net::tcp::{OwnedReadHalf, OwnedWriteHalf};
use tokio::sync::{Mutex as AsyncMutex, OwnedSemaphorePermit, Semaphore, mpsc};
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;

use crate::agent::out::Out;
use crate::agent::{Options, keep};
use crate::gateway::SessionSpec;

/// `MaxReceiveBuffer`: for all streams together; then the one reader waits.
const RECEIVE_BUFFER: usize = 4 << 20;
/// Streams that wait for their dial.
const BACKLOG: usize = 1024;
/// Between the multiplexer and the 1024-byte reads lies a Unix socket.
const PIPE: usize = 208 * 1024;
/// Bytes of one message.
const READ: usize = 1024;

/// Full messages of all sessions, and how long was paused after them.
static FULL: AtomicU64 = AtomicU64::new(0);
static SLEPT_NS: AtomicU64 = AtomicU64::new(0);

/// Bytes of full messages, and the pauses after them.
pub(super) fn throttle() -> (u64, Duration) {
    (FULL.load(Ordering::Relaxed) * READ as u64, Duration::from_nanos(SLEPT_NS.load(Ordering::Relaxed)))
}

type Chunk = (Bytes, OwnedSemaphorePermit);

/// One stream, for the reader.
struct Stream {
    data: mpsc::Sender<Chunk>,
    closed: CancellationToken,
}

struct Shared {
    streams: Mutex<HashMap<u32, Stream>>,
    pipe: AsyncMutex<WriteHalf<DuplexStream>>,
    out: Arc<Out>,
    host: IpAddr,
    port: u16,
    tracker: TaskTracker,
    cancel: CancellationToken,
}

pub(super) struct Smux {
    shared: Arc<Shared>,
    room: Arc<Semaphore>,
    dials: mpsc::Sender<(u32, mpsc::Receiver<Chunk>, CancellationToken)>,
    incoming: Vec<u8>,
    broken: bool,
}

impl Drop for Smux {
    fn drop(&mut self) {
        self.shared.cancel.cancel();
    }
}

impl Smux {
    pub(super) fn new(spec: &SessionSpec, options: &Options, out: Arc<Out>) -> Self {
        let (near, far) = tokio::io::duplex(PIPE);
        let (_, write) = tokio::io::split(near);
        let (read, _) = tokio::io::split(far);
        let shared = Arc::new(Shared {
            streams: Mutex::default(),
            pipe: AsyncMutex::new(write),
            out: Arc::clone(&out),
            host: spec.agent_host,
            port: spec.port,
            tracker: TaskTracker::new(),
            cancel: CancellationToken::new(),
        });
        let (dials, queue) = mpsc::channel(BACKLOG);
        let cancel = shared.cancel.clone();
        shared.tracker.spawn(cancel.clone().run_until_cancelled_owned(publish(read, options.clone(), out)));
        shared.tracker.spawn(cancel.run_until_cancelled_owned(dial(Arc::clone(&shared), queue)));
        Self { shared, room: Arc::new(Semaphore::new(RECEIVE_BUFFER)), dials, incoming: Vec::new(), broken: false }
    }

    /// Takes bytes of the client. Waits while the receive buffer is full: nothing else is read meanwhile.
    pub(super) async fn input(&mut self, bytes: &[u8]) {
        if self.broken {
            return;
        }
        self.incoming.extend_from_slice(bytes);
        let mut start = 0;
        loop {
            match Frame::decode(self.incoming.get(start..).unwrap_or_default()) {
                Ok(Some((frame, used))) => {
                    start += used;
                    self.frame(frame).await;
                }
                Ok(None) => break,
                Err(_) => {
                    // The session stays open and is dead.
                    self.broken = true;
                    self.shared.cancel.cancel();
                    return;
                }
            }
        }
        self.incoming.drain(..start);
    }

    async fn frame(&self, frame: Frame) {
        match frame.command {
            Command::Syn => {
                let (data, receiver) = mpsc::channel(RECEIVE_BUFFER / 64);
                let closed = CancellationToken::new();
                let known = {
                    let mut streams = self.shared.streams();
                    let known = streams.contains_key(&frame.stream);
                    if !known {
                        streams.insert(frame.stream, Stream { data, closed: closed.clone() });
                    }
                    known
                };
                if !known {
                    // Full backlog: the reader waits, as accept does.
                    let _ended = self.dials.send((frame.stream, receiver, closed)).await;
                }
            }
            Command::Psh => {
                let sender = self.shared.streams().get(&frame.stream).map(|stream| stream.data.clone());
                let size = u32::try_from(frame.data.len()).unwrap_or(0);
                if let Some(sender) = sender
                    && let Ok(permit) = Arc::clone(&self.room).acquire_many_owned(size).await
                {
                    // Nobody there any more: dropped, as the agent does.
                    let _gone = sender.send((frame.data, permit)).await;
                }
            }
            Command::Fin => {
                let stream = self.shared.streams().remove(&frame.stream);
                if let Some(stream) = stream {
                    drop(stream.data);
                    stream.closed.cancel();
                }
            }
            Command::Nop => {}
        }
    }
}

impl Shared {
    fn streams(&self) -> MutexGuard<'_, HashMap<u32, Stream>> {
        self.streams.lock().unwrap_or_else(PoisonError::into_inner)
    }

    async fn write(&self, command: Command, stream: u32, data: Bytes) {
        let mut bytes = Vec::new();
        Frame { command, stream, data }.encode(&mut bytes);
        if self.out.leg().spoils_smux()
            && let Some(version) = bytes.first_mut()
        {
            *version = 2;
        }
        // Fails only when the session ends.
        let _ended = self.pipe.lock().await.write_all(&bytes).await;
    }
}

/// The output loop: a small read, a message, a pause.
async fn publish(mut pipe: ReadHalf<DuplexStream>, options: Options, out: Arc<Out>) {
    let pause = options.pause;
    let mut buffer = vec![0; READ];
    loop {
        while out.is_paused() {
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
        let length = match pipe.read(&mut buffer).await {
            Ok(0) | Err(_) => return,
            Ok(length) => length,
        };
        let payload = Bytes::copy_from_slice(buffer.get(..length).unwrap_or_default());
        if let Some(capture) = &options.capture {
            keep(&capture.down, &payload);
        }
        out.send(PayloadType::OUTPUT, payload).await;
        // Even a sleep of nothing takes a millisecond.
        if pause.is_zero() {
            continue;
        }
        let pausing = Instant::now();
        tokio::time::sleep(pause).await;
        if length == READ {
            FULL.fetch_add(1, Ordering::Relaxed);
            let slept = u64::try_from(pausing.elapsed().as_nanos()).unwrap_or(u64::MAX);
            SLEPT_NS.fetch_add(slept, Ordering::Relaxed);
        }
    }
}

/// One dial after the other.
async fn dial(shared: Arc<Shared>, mut queue: mpsc::Receiver<(u32, mpsc::Receiver<Chunk>, CancellationToken)>) {
    while let Some((id, data, closed)) = queue.recv().await {
        shared.out.leg().dial().await;
        let connected = TcpStream::connect((shared.host, shared.port)).await;
        match connected {
            Ok(target) => {
                // Go sets it by default.
                let _best_effort = target.set_nodelay(true);
                let (read, write) = target.into_split();
                let down = down(Arc::clone(&shared), id, read, closed.clone());
                let cancel = shared.cancel.clone();
                shared.tracker.spawn(cancel.clone().run_until_cancelled_owned(down));
                shared.tracker.spawn(cancel.run_until_cancelled_owned(up(write, data, closed)));
            }
            Err(_) => {
                shared.streams().remove(&id);
                let flag = Bytes::copy_from_slice(&Flag::ConnectToPortError.encode());
                shared.out.send(PayloadType::FLAG, flag).await;
                shared.write(Command::Fin, id, Bytes::new()).await;
            }
        }
    }
}

/// Client → target. A FIN closes the connection fully after what came before it.
async fn up(mut write: OwnedWriteHalf, mut data: mpsc::Receiver<Chunk>, closed: CancellationToken) {
    while let Some((chunk, _room)) = data.recv().await {
        if write.write_all(&chunk).await.is_err() {
            data.close();
        }
    }
    closed.cancel();
}

/// Target → client, until its end or until the client has closed the stream.
async fn down(shared: Arc<Shared>, id: u32, mut read: OwnedReadHalf, closed: CancellationToken) {
    let mut buffer = vec![0; MAX_AGENT_DATA];
    loop {
        let length = tokio::select! {
            () = closed.cancelled() => break,
            length = read.read(&mut buffer) => length,
        };
        match length {
            Ok(length) if length > 0 => {
                let data = Bytes::copy_from_slice(buffer.get(..length).unwrap_or_default());
                shared.write(Command::Psh, id, data).await;
            }
            _ => break,
        }
    }
    shared.streams().remove(&id);
    shared.write(Command::Fin, id, Bytes::new()).await;
}
