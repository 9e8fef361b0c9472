//! The gateway in a process of its own: as a sandbox has it, with a credential, rules, redaction and
//! an audit log, but for the guest and its relay. What a guest opens is a TCP connection here.

use std::collections::HashMap;
use std::net::{IpAddr, Ipv4Addr, SocketAddr};
use std::path::Path;
use std::sync::Arc;
use std::time::{Duration, UNIX_EPOCH};

use audit::{Details, Entry};
use canonical::{Authority, Host};
use egress::{
    Config, Credential, Decision, Event, Gateway, Journal, OWN_ADDRESS, Options, PROXY_PORT,
    Upstream,
};
use hickory_proto::op::{Message, MessageType, OpCode, Query};
use hickory_proto::rr::{Name, RData, RecordType};
use rules::{Access, Layer, Mode, Rules};
use services::{Charset, Kind, Service, Shape, Slot};
use store::Store;
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::TcpListener;
use tokio::sync::mpsc;
use wire::text::Secret;

use crate::Outcome;
use crate::origin::{PLACEHOLDER, SECRET};

/// Events that wait to be written, most of one transaction, and how long the first waits for others:
/// as the program has it.
const WAITING: usize = 4096;
const TOGETHER: usize = 512;
const GATHERED: Duration = Duration::from_millis(20);

/// Listens for what a guest would open to `one.example`, to `two.example` and to the proxy's port.
pub(crate) async fn serve(directory: &Path, h1: u16, h2: u16, audited: bool) -> Outcome<[u16; 3]> {
    let journal: Arc<dyn Journal> = match audited {
        true => Arc::new(Recorder::start(directory)?),
        false => Arc::new(Dropped),
    };
    let at = |host: &str, port: u16| -> Outcome<_> {
        let host = Host::parse(host)?;
        let name = host.name().ok_or("no name")?.clone();
        Ok((name, SocketAddr::from(([127, 0, 0, 1], port))))
    };
    let upstream = Upstream::new(Options {
        extra_roots: std::fs::read(directory.join("origin.pem"))?,
        only_extra_roots: true,
        pins: HashMap::from([at("one.example", h1)?, at("two.example", h2)?]),
        proxy: None,
    })?;
    let service = service()?;
    let gateway = Gateway::new(Config {
        sandbox: "sb-0000000000000000".into(),
        rules: rules(&service)?,
        credentials: vec![Credential {
            service: Arc::new(service),
            secret: Secret::new(SECRET.into())?,
            placeholder: PLACEHOLDER.into(),
        }],
        journal,
        upstream: Arc::new(upstream),
    })?;
    std::fs::write(directory.join("gateway.pem"), gateway.authority_pem())?;
    let mut ports = [0; 3];
    let targets = [
        (lookup(&gateway, "one.example").await?, 443),
        (lookup(&gateway, "two.example").await?, 443),
        (OWN_ADDRESS, PROXY_PORT),
    ];
    for ((address, port), listening) in targets.into_iter().zip(&mut ports) {
        let listener = TcpListener::bind("127.0.0.1:0").await?;
        *listening = listener.local_addr()?.port();
        let gateway = gateway.clone();
        tokio::spawn(async move {
            while let Ok((stream, _)) = listener.accept().await {
                stream.set_nodelay(true).ok();
                let gateway = gateway.clone();
                tokio::spawn(async move {
                    gateway.connect(IpAddr::V4(address), port, Box::new(stream)).await;
                });
            }
        });
    }
    Ok(ports)
}

/// Asks for an address as a guest does.
async fn lookup(gateway: &Gateway, name: &str) -> Outcome<Ipv4Addr> {
    let mut query = Message::new(7, MessageType::Query, OpCode::Query);
    query.add_query(Query::query(Name::from_ascii(name)?, RecordType::A));
    let bytes = query.to_vec()?;
    let (mut guest, host) = tokio::io::duplex(4096);
    let answering = gateway.clone();
    tokio::spawn(async move { answering.dns(host).await });
    guest.write_u16(u16::try_from(bytes.len())?).await?;
    guest.write_all(&bytes).await?;
    let mut answer = vec![0; usize::from(guest.read_u16().await?)];
    guest.read_exact(&mut answer).await?;
    let answer = Message::from_vec(&answer)?;
    let address = answer.answers.iter().find_map(|record| match &record.data {
        RData::A(address) => Some(address.0),
        _ => None,
    });
    Ok(address.ok_or("no address")?)
}

/// A service as most are: a token in a header, operations that are denied, all others allowed.
fn service() -> Outcome<Service> {
    Ok(Service {
        name: "bench".into(),
        env: vec!["BENCH_API_KEY".into()],
        extra_env: Vec::new(),
        base_url_env: Vec::new(),
        placeholder: Shape { prefix: "sk-".into(), charset: Charset::Hex, length: None },
        inject_hosts: vec![
            Authority::parse("one.example", 443)?,
            Authority::parse("two.example", 443)?,
        ],
        plain_hosts: Vec::new(),
        slots: vec![
            Slot::Header { name: "authorization".into(), scheme: Some("Bearer".into()) },
            Slot::Header { name: "x-api-key".into(), scheme: None },
        ],
        kind: Kind::Static,
        leniency: canonical::Leniency::default(),
        git: None,
        docker: Vec::new(),
        foreign_credentials: false,
        read_only: vec!["READ /**".into()],
        full: vec!["ANY /**".into()],
        deny: vec!["POST /v1/organizations/**".into(), "ANY /v1/keys/**".into()],
    })
}

/// The service's rules, beside fifty of other hosts.
pub(crate) fn rules(service: &Service) -> Outcome<Rules> {
    let lines: Vec<String> = (0..25)
        .flat_map(|number| {
            [
                format!("READ host-{number}.example.com/api/**"),
                format!("POST api.example.com/repos/acme-{number}/*/issues"),
            ]
        })
        .collect();
    let deny = ["ANY api.example.com/repos/*/secrets/**"];
    let own =
        vec![Layer::from_lines("--allow", &lines, &deny)?, Layer::service(service, &Access::Full)?];
    Ok(Rules::new(Mode::Allow, own, Vec::new())?)
}

/// How long a decision about the usual request takes, in nanoseconds.
pub(crate) fn decision() -> Outcome<f64> {
    const TIMES: u32 = 100_000;
    let rules = rules(&service()?)?;
    let host = Host::parse("one.example")?;
    let path = canonical::Path::parse("/v1/messages", canonical::Leniency::default())?;
    let query = canonical::Query::parse("limit=20")?;
    let request = rules::Request {
        host: &host,
        port: 443,
        method: "GET",
        path: &path,
        query: &query,
        websocket: false,
        grpc: false,
        content_type: None,
    };
    let mut best = f64::INFINITY;
    for _ in 0..9 {
        let begun = std::time::Instant::now();
        for _ in 0..TIMES {
            let verdict = rules.request(std::hint::black_box(&request));
            if !matches!(std::hint::black_box(verdict), rules::Verdict::Allow(_)) {
                return Err("the rules deny it".into());
            }
        }
        best = best.min(begun.elapsed().as_secs_f64() * 1e9 / f64::from(TIMES));
    }
    Ok(best)
}

struct Dropped;

impl Journal for Dropped {
    fn record(&self, event: Event) {
        drop(event);
    }
}

/// Writes everything down as the program does: in the hash-chained log of its database.
struct Recorder(mpsc::Sender<Event>);

impl Journal for Recorder {
    fn record(&self, event: Event) {
        if self.0.try_send(event).is_err() {
            eprintln!("bench: an event was lost");
        }
    }

    fn is_ready(&self) -> bool {
        self.0.capacity() > TOGETHER && !self.0.is_closed()
    }
}

impl Recorder {
    fn start(directory: &Path) -> Outcome<Self> {
        let store = Store::open(&directory.join("data"), store::Options::default())?;
        let (sender, mut receiver) = mpsc::channel(WAITING);
        tokio::spawn(async move {
            let mut events = Vec::new();
            while receiver.recv_many(&mut events, TOGETHER).await > 0 {
                if events.len() < TOGETHER {
                    tokio::time::sleep(GATHERED).await;
                    while events.len() < TOGETHER
                        && let Ok(event) = receiver.try_recv()
                    {
                        events.push(event);
                    }
                }
                let entries: Vec<Entry> = events.drain(..).map(|event| entry(&event)).collect();
                let written = store.write(move |change| change.audit_all(&entries));
                let written: Result<(), store::StoreError> = written.await;
                if let Err(error) = written {
                    eprintln!("bench: {error}");
                }
            }
        });
        Ok(Self(sender))
    }
}

/// As the program makes it of an event.
fn entry(event: &Event) -> Entry {
    let mut entry = Entry::allowed("sb-0000000000000000", "egress_request")
        .in_workspace("default")
        .on_sandbox("sb-0000000000000000")
        .with_outcome(match event.decision {
            Decision::Allowed => "allowed",
            Decision::Denied => "denied",
            Decision::Failed => "failed",
        });
    let since = event.at.duration_since(UNIX_EPOCH).unwrap_or_default();
    entry.at = api::Timestamp::from_unix_ms(i64::try_from(since.as_millis()).unwrap_or(i64::MAX));
    entry.rule = event.rule.as_ref().map(|rule| api::RuleRef {
        file: rule.source.to_string(),
        line: rule.line,
        text: rule.text.to_string(),
    });
    entry.generation = Some(event.generation);
    match Details::of(event) {
        Ok(details) => entry.details = details,
        Err(error) => entry = entry.with_detail("error", error.to_string()),
    }
    entry
}
