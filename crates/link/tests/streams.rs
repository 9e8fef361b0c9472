//! What tasks of a guest open, against the wire itself: the guest's end is a bare connection.

use std::net::IpAddr;
use std::sync::Arc;
use std::time::Duration;

use link::{Guest, GuestStream, GuestStreams, generate_key};
use tokio::io::{AsyncReadExt, AsyncWriteExt, DuplexStream, ReadHalf, WriteHalf};
use tokio::sync::mpsc;
use wire::connection::{Connection, Event, Side, WINDOW, cancelled};
use wire::frame::StreamId;
use wire::handshake::{Hello, KNOCK};
use wire::op::{AgentOpen, ErrorCode, OpError};
use zeroize::Zeroizing;

/// The guest's end.
struct Peer {
    reader: ReadHalf<DuplexStream>,
    writer: WriteHalf<DuplexStream>,
    connection: Connection,
}

impl Peer {
    async fn new(carrier: DuplexStream) -> Self {
        let (mut reader, mut writer) = tokio::io::split(carrier);
        let mut knock = [0; KNOCK];
        reader.read_exact(&mut knock).await.unwrap();
        writer.write_all(&knock).await.unwrap();
        let hello = serde_json::to_vec(&Hello::new("test", 0)).unwrap();
        let connection = Connection::new(Side::Agent, hello);
        let mut peer = Self { reader, writer, connection };
        peer.flush().await;
        assert!(matches!(peer.event().await, Event::Hello(_)));
        peer
    }

    async fn flush(&mut self) {
        let mut out = Zeroizing::default();
        self.connection.transmit(&mut out, usize::MAX);
        self.writer.write_all(&out).await.unwrap();
    }

    async fn event(&mut self) -> Event {
        loop {
            self.flush().await;
            if let Some(event) = self.connection.poll_event() {
                return event;
            }
            let mut bytes = vec![0; 64 << 10];
            let count = self.reader.read(&mut bytes).await.unwrap();
            assert_ne!(count, 0, "the host hung up");
            self.connection.receive(&bytes[..count]).unwrap();
        }
    }

    async fn open(&mut self, open: &AgentOpen) -> StreamId {
        let payload = serde_json::to_vec(open).unwrap();
        let id = self.connection.open(Zeroizing::new(payload)).unwrap();
        self.flush().await;
        id
    }

    async fn connect(&mut self) -> StreamId {
        self.open(&AgentOpen::Connect { address: [192, 0, 2, 1].into(), port: 443 }).await
    }
}

/// Hands on what it takes.
#[derive(Debug)]
struct Taker(mpsc::UnboundedSender<(Option<(IpAddr, u16)>, GuestStream)>);

impl GuestStreams for Taker {
    fn connect(&self, address: IpAddr, port: u16, stream: GuestStream) {
        self.0.send((Some((address, port)), stream)).unwrap();
    }

    fn dns(&self, stream: GuestStream) {
        self.0.send((None, stream)).unwrap();
    }
}

type Taken = mpsc::UnboundedReceiver<(Option<(IpAddr, u16)>, GuestStream)>;

async fn pair() -> (Guest, Peer, Taken) {
    let (sender, taken) = mpsc::unbounded_channel();
    let (guest, peer) = connected(Some(Arc::new(Taker(sender)))).await;
    (guest, peer, taken)
}

async fn connected(takes: Option<Arc<dyn GuestStreams>>) -> (Guest, Peer) {
    let (host, guest) = tokio::io::duplex(1 << 20);
    let patience = Duration::from_secs(5);
    let key = generate_key().unwrap();
    let (guest, peer) =
        tokio::join!(Guest::connect(host, "sb", key, patience, takes), Peer::new(guest));
    (guest.unwrap(), peer)
}

#[tokio::test]
async fn a_connection_arrives_with_its_address_and_its_bytes() {
    let (_guest, mut peer, mut taken) = pair().await;
    let id = peer.connect().await;
    peer.connection.send(id, b"hello".to_vec());
    peer.connection.close(id, Vec::new());
    peer.flush().await;
    let (to, mut stream) = taken.recv().await.unwrap();
    assert_eq!(to, Some(([192, 0, 2, 1].into(), 443)));
    let mut bytes = Vec::new();
    stream.read_to_end(&mut bytes).await.unwrap();
    assert_eq!(bytes, b"hello");
}

#[tokio::test]
async fn questions_for_names_are_a_kind_of_their_own() {
    let (_guest, mut peer, mut taken) = pair().await;
    peer.open(&AgentOpen::Dns {}).await;
    assert!(taken.recv().await.unwrap().0.is_none());
}

#[tokio::test]
async fn the_host_may_go_on_after_the_task_s_end_and_ends_by_itself() {
    let (_guest, mut peer, mut taken) = pair().await;
    let id = peer.connect().await;
    peer.connection.close(id, Vec::new());
    peer.flush().await;
    let (_, mut stream) = taken.recv().await.unwrap();
    assert_eq!(stream.read(&mut [0; 1]).await.unwrap(), 0);
    stream.write_all(b"answer").await.unwrap();
    stream.shutdown().await.unwrap();
    drop(stream);
    assert_eq!(peer.event().await, Event::Data(id, b"answer".to_vec()));
    assert_eq!(peer.event().await, Event::Closed(id, Vec::new()));
}

#[tokio::test]
async fn what_was_written_before_the_host_closed_arrives_though_the_task_never_ends() {
    let (_guest, mut peer, mut taken) = pair().await;
    let id = peer.connect().await;
    let (_, mut stream) = taken.recv().await.unwrap();
    stream.write_all(&[7; WINDOW]).await.unwrap();
    stream.shutdown().await.unwrap();
    drop(stream);
    let mut received = 0;
    loop {
        match peer.event().await {
            Event::Data(_, bytes) => received += bytes.len(),
            Event::Closed(..) => break,
            other => panic!("{other:?}"),
        }
    }
    assert_eq!(received, WINDOW);
    // And the stream's place is free.
    assert_eq!(peer.event().await, Event::Reset(id, cancelled()));
}

#[tokio::test]
async fn a_stream_that_is_dropped_before_its_end_is_reset() {
    let (_guest, mut peer, mut taken) = pair().await;
    let id = peer.connect().await;
    drop(taken.recv().await.unwrap());
    assert_eq!(peer.event().await, Event::Reset(id, cancelled()));
}

#[tokio::test]
async fn a_refusal_is_a_reset_with_its_reason() {
    let (_guest, mut peer, mut taken) = pair().await;
    let id = peer.connect().await;
    let refusal = OpError::new(ErrorCode::PermissionDenied, "no rule allows 192.0.2.1");
    taken.recv().await.unwrap().1.refuse(&refusal);
    assert_eq!(peer.event().await, Event::Reset(id, refusal));
}

#[tokio::test]
async fn a_reset_by_the_task_is_an_error_to_reader_and_writer() {
    let (_guest, mut peer, mut taken) = pair().await;
    let id = peer.connect().await;
    let (_, stream) = taken.recv().await.unwrap();
    let (mut reader, mut writer) = tokio::io::split(stream);
    peer.connection.reset(id, &cancelled());
    peer.flush().await;
    let error = reader.read(&mut [0; 1]).await.unwrap_err();
    assert_eq!(error.kind(), std::io::ErrorKind::ConnectionReset);
    assert!(writer.write(b"x").await.is_err());
}

#[tokio::test]
async fn a_reader_that_waits_holds_up_the_task_at_one_window() {
    let (_guest, mut peer, mut taken) = pair().await;
    let id = peer.connect().await;
    let (_, mut stream) = taken.recv().await.unwrap();
    peer.connection.send(id, vec![1; WINDOW]);
    assert_eq!(peer.connection.room(id), 0);
    peer.flush().await;
    let mut half = vec![0; WINDOW / 2];
    stream.read_exact(&mut half).await.unwrap();
    assert_eq!(peer.event().await, Event::Writable(id));
    assert_eq!(peer.connection.room(id), WINDOW / 2);
}

#[tokio::test]
async fn a_writer_waits_until_the_task_has_read() {
    let (_guest, mut peer, mut taken) = pair().await;
    let id = peer.connect().await;
    let (_, mut stream) = taken.recv().await.unwrap();
    stream.write_all(&[1; WINDOW]).await.unwrap();
    let writing = tokio::spawn(async move { stream.write(b"more").await.unwrap() });
    let mut received = 0;
    while received < WINDOW {
        let Event::Data(_, bytes) = peer.event().await else { panic!("no data") };
        received += bytes.len();
    }
    tokio::task::yield_now().await;
    assert!(!writing.is_finished());
    peer.connection.consumed(id, received);
    peer.flush().await;
    assert_eq!(writing.await.unwrap(), 4);
}

#[tokio::test]
async fn without_anybody_to_take_them_streams_are_refused_and_the_connection_goes_on() {
    let (guest, mut peer) = connected(None).await;
    for open in [AgentOpen::Connect { address: [192, 0, 2, 1].into(), port: 1 }, AgentOpen::Dns {}]
    {
        let id = peer.open(&open).await;
        let event = peer.event().await;
        let Event::Reset(refused, error) = event else { panic!("{event:?}") };
        assert_eq!((refused, error.code), (id, ErrorCode::PermissionDenied));
    }
    let mut ping = std::pin::pin!(guest.ping());
    tokio::select! {
        answered = &mut ping => drop(answered.unwrap()),
        event = peer.event() => panic!("{event:?}"),
    }
}

#[tokio::test]
async fn the_end_of_the_guest_ends_its_streams() {
    let (_guest, mut peer, mut taken) = pair().await;
    peer.connect().await;
    let (_, mut stream) = taken.recv().await.unwrap();
    drop(peer);
    let error = stream.read(&mut [0; 1]).await.unwrap_err();
    assert_eq!(error.kind(), std::io::ErrorKind::BrokenPipe);
}

#[tokio::test]
async fn a_stream_keeps_no_connection_alive() {
    let (guest, mut peer, mut taken) = pair().await;
    peer.connect().await;
    let (_, mut stream) = taken.recv().await.unwrap();
    let reading = tokio::spawn(async move { stream.read(&mut [0; 1]).await.unwrap_err() });
    tokio::task::yield_now().await;
    drop(guest);
    assert_eq!(reading.await.unwrap().kind(), std::io::ErrorKind::BrokenPipe);
    let mut rest = Vec::new();
    peer.reader.read_to_end(&mut rest).await.unwrap();
}
