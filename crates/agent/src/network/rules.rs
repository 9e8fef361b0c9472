//! The rules of nf_tables that lead what tasks send to the agent, and nowhere else.
//!
//! ```text
//! table inet sandforge {
//!     chain untracked  { type filter hook output priority -300; policy accept;
//!         tcp sport 1 accept
//!         udp sport 1 accept
//!         oif lo notrack
//!     }
//!     chain redirected { type nat hook output priority -100; policy accept;
//!         oif lo accept
//!         meta l4proto tcp redirect to :1
//!         meta l4proto udp redirect to :1
//!     }
//!     chain out        { type filter hook output priority 0; policy drop;
//!         ct status dnat accept
//!         oif lo accept
//!     }
//!     chain in         { type filter hook input priority 0; policy accept;
//!         tcp dport 1 ct status dnat accept
//!         tcp dport 1 reject with tcp reset
//!         udp dport 1 ct status dnat ct original proto-dst 53 accept
//!         udp dport 1 reject with icmpx type port-unreachable
//!     }
//! }
//! ```
//!
//! What goes over loopback among tasks is neither tracked nor changed: a server under load there
//! does not fill a table that it has no part in. UDP that is not for DNS is turned away where it
//! arrives and not where it leaves, so that the sender is told "connection refused" and not
//! "operation not permitted", which is what makes QUIC fall back to TCP.

use std::io;
use std::os::fd::OwnedFd;

use super::netlink::{APPEND, Attributes, CREATE, Message, Netlink, name_bytes};

/// Where the agent listens, for both protocols. No server of a task's ever wants it, and no
/// outgoing connection is given it.
pub(super) const PORT: u16 = 1;

const TABLE: &str = "sandforge";

// linux/netfilter.h, linux/netfilter/nfnetlink.h, linux/netfilter/nf_tables.h
const INET: u8 = 1;
const SUBSYSTEM: u16 = 10;
const BATCH_BEGIN: u16 = 0x10;
const BATCH_END: u16 = 0x11;
const NEW_TABLE: u16 = SUBSYSTEM << 8;
const NEW_CHAIN: u16 = SUBSYSTEM << 8 | 3;
const NEW_RULE: u16 = SUBSYSTEM << 8 | 6;
const HOOK_IN: u32 = 1;
const HOOK_OUT: u32 = 3;
const DROP: u32 = 0;
const ACCEPT: u32 = 1;
/// The register that carries verdicts, and the one that everything else goes through.
const VERDICT: u32 = 0;
const REGISTER: u32 = 1;
const LOOPBACK: u32 = 1;
const DESTINATION_CHANGED: u32 = 1 << 5;
const DNS: u16 = 53;
const TCP: u8 = 6;
const UDP: u8 = 17;

/// Puts them in force, all or none.
pub(super) fn enforce(netfilter: OwnedFd) -> io::Result<()> {
    Netlink::new(netfilter).ask(batch())
}

fn batch() -> Vec<Message> {
    let around = |kind| Message::unacknowledged(kind, &header(0, SUBSYSTEM));
    let table = Message::new(NEW_TABLE, CREATE, &header(INET, 0)).attribute(1, &name_bytes(TABLE));
    let mut messages = vec![around(BATCH_BEGIN), table];
    for chain in chains() {
        messages.push(chain.message());
        messages.extend(chain.rules.iter().map(|rule| rule_message(chain.name, rule)));
    }
    messages.push(around(BATCH_END));
    messages
}

/// `struct nfgenmsg`.
fn header(family: u8, resource: u16) -> [u8; 4] {
    let [high, low] = resource.to_be_bytes();
    [family, 0, high, low]
}

struct Chain {
    name: &'static str,
    kind: &'static str,
    hook: u32,
    priority: i32,
    policy: u32,
    rules: Vec<Vec<Expression>>,
}

fn chains() -> [Chain; 4] {
    use Expression as E;
    let changed = || [E::Status, E::Bits(DESTINATION_CHANGED), E::Differs(vec![0; 4])];
    let over_loopback = || [E::OutInterface, E::Is(LOOPBACK.to_ne_bytes().to_vec())];
    let protocol = |number: u8| [E::Protocol, E::Is(vec![number])];
    let from_us = |number| [&protocol(number)[..], &[E::SourcePort, E::is_port(PORT)]].concat();
    let to_us = |number| [&protocol(number)[..], &[E::DestinationPort, E::is_port(PORT)]].concat();
    let for_dns = [E::OriginalDestinationPort, E::is_port(DNS)];
    [
        Chain {
            name: "untracked",
            kind: "filter",
            hook: HOOK_OUT,
            priority: -300,
            policy: ACCEPT,
            rules: vec![
                [&from_us(TCP)[..], &[E::Accept]].concat(),
                [&from_us(UDP)[..], &[E::Accept]].concat(),
                [&over_loopback()[..], &[E::Untracked]].concat(),
            ],
        },
        Chain {
            name: "redirected",
            kind: "nat",
            hook: HOOK_OUT,
            priority: -100,
            policy: ACCEPT,
            rules: vec![
                [&over_loopback()[..], &[E::Accept]].concat(),
                [&protocol(TCP)[..], &E::redirect(PORT)].concat(),
                [&protocol(UDP)[..], &E::redirect(PORT)].concat(),
            ],
        },
        Chain {
            name: "out",
            kind: "filter",
            hook: HOOK_OUT,
            priority: 0,
            policy: DROP,
            rules: vec![
                [&changed()[..], &[E::Accept]].concat(),
                [&over_loopback()[..], &[E::Accept]].concat(),
            ],
        },
        Chain {
            name: "in",
            kind: "filter",
            hook: HOOK_IN,
            priority: 0,
            policy: ACCEPT,
            rules: vec![
                [&to_us(TCP)[..], &changed(), &[E::Accept]].concat(),
                [&to_us(TCP)[..], &[E::ResetByTcp]].concat(),
                [&to_us(UDP)[..], &changed(), &for_dns, &[E::Accept]].concat(),
                [&to_us(UDP)[..], &[E::PortUnreachable]].concat(),
            ],
        },
    ]
}

impl Chain {
    fn message(&self) -> Message {
        let hook =
            Attributes::default().number(1, self.hook).number(2, self.priority.cast_unsigned());
        Message::new(NEW_CHAIN, CREATE, &header(INET, 0))
            .attribute(1, &name_bytes(TABLE))
            .attribute(3, &name_bytes(self.name))
            .nested(4, &hook)
            .attribute(5, &self.policy.to_be_bytes())
            .attribute(7, &name_bytes(self.kind))
    }
}

fn rule_message(chain: &str, rule: &[Expression]) -> Message {
    let list = rule.iter().fold(Attributes::default(), |list, expression| {
        let (name, data) = expression.encode();
        let element = Attributes::default().name(1, name).nested(2, &data);
        list.nested(1, &element)
    });
    Message::new(NEW_RULE, APPEND, &header(INET, 0))
        .attribute(1, &name_bytes(TABLE))
        .attribute(2, &name_bytes(chain))
        .nested(4, &list)
}

/// A step of a rule. Those that load do so into the one register, those that compare look there,
/// and a rule ends at the first that does not hold.
#[derive(Debug, Clone, PartialEq, Eq)]
enum Expression {
    OutInterface,
    Protocol,
    SourcePort,
    DestinationPort,
    Status,
    OriginalDestinationPort,
    /// Keeps these bits of a word.
    Bits(u32),
    Is(Vec<u8>),
    Differs(Vec<u8>),
    Immediate(Vec<u8>),
    /// To the port in the register.
    Redirect,
    Accept,
    Untracked,
    ResetByTcp,
    PortUnreachable,
}

impl Expression {
    fn is_port(port: u16) -> Self {
        Self::Is(port.to_be_bytes().to_vec())
    }

    fn redirect(port: u16) -> [Self; 2] {
        [Self::Immediate(port.to_be_bytes().to_vec()), Self::Redirect]
    }

    fn encode(&self) -> (&'static str, Attributes) {
        let new = Attributes::default;
        let value = |bytes: &[u8]| new().with(1, bytes);
        // Key of `meta`, into the register.
        let meta = |key| ("meta", new().number(2, key).number(1, REGISTER));
        let transport = |offset| {
            const TRANSPORT: u32 = 2;
            const PORT_BYTES: u32 = 2;
            let data = new().number(1, REGISTER).number(2, TRANSPORT);
            ("payload", data.number(3, offset).number(4, PORT_BYTES))
        };
        let compare = |operator, bytes: &[u8]| {
            let data = new().number(1, REGISTER).number(2, operator);
            ("cmp", data.nested(3, &value(bytes)))
        };
        match self {
            Self::OutInterface => meta(5),
            Self::Protocol => meta(16),
            Self::SourcePort => transport(0),
            Self::DestinationPort => transport(2),
            Self::Status => ("ct", new().number(1, REGISTER).number(2, 2)),
            Self::OriginalDestinationPort => {
                let direction: &[u8] = &[0];
                ("ct", new().number(1, REGISTER).number(2, 12).with(3, direction))
            }
            Self::Bits(mask) => {
                let data = new().number(1, REGISTER).number(2, REGISTER).number(3, 4);
                let data = data.nested(4, &value(&mask.to_ne_bytes()));
                ("bitwise", data.nested(5, &value(&[0; 4])))
            }
            Self::Is(bytes) => compare(0, bytes),
            Self::Differs(bytes) => compare(1, bytes),
            Self::Immediate(bytes) => {
                ("immediate", new().number(1, REGISTER).nested(2, &value(bytes)))
            }
            Self::Redirect => ("redir", new().number(1, REGISTER)),
            Self::Accept => {
                let verdict = new().nested(2, &new().number(1, ACCEPT));
                ("immediate", new().number(1, VERDICT).nested(2, &verdict))
            }
            Self::Untracked => ("notrack", new()),
            Self::ResetByTcp => ("reject", new().number(1, 1)),
            Self::PortUnreachable => {
                let code: &[u8] = &[1];
                ("reject", new().number(1, 2).with(2, code))
            }
        }
    }
}
