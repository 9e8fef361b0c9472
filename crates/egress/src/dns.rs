//! DNS as a guest sees it: every name that could be one of the internet's has an address, which
//! stands for the name and nothing else, so that a refusal can say why. No query leaves the host.

use canonical::{Host, Name};
use hickory_proto::op::{Message, MessageType, OpCode, ResponseCode};
use hickory_proto::rr::rdata::A;
use hickory_proto::rr::{DNSClass, RData, Record, RecordType};
use tokio::io::{AsyncRead, AsyncReadExt as _, AsyncWrite, AsyncWriteExt as _};

/// Longest query, in bytes.
const MAX_QUERY: usize = 1232;
/// How long an answer may be kept, in seconds.
const TTL: u32 = 60;

/// Ends of names that mean something on one network only, or nothing.
const LOCAL: [&str; 10] = [
    "local",
    "localhost",
    "localdomain",
    "internal",
    "home",
    "lan",
    "corp",
    "arpa",
    "onion",
    "invalid",
];

/// Answers the queries of one stream, each with its length before it (RFC 1035, section 4.2.2),
/// until it ends.
pub(crate) async fn serve<S>(
    stream: &mut S,
    mut address: impl FnMut(&Name) -> std::net::Ipv4Addr,
) -> std::io::Result<()>
where
    S: AsyncRead + AsyncWrite + Unpin,
{
    let mut query = vec![0; MAX_QUERY];
    loop {
        let length = match stream.read_u16().await {
            Ok(length) => usize::from(length),
            Err(error) if error.kind() == std::io::ErrorKind::UnexpectedEof => return Ok(()),
            Err(error) => return Err(error),
        };
        let Some(bytes) = query.get_mut(..length) else { return Ok(()) };
        stream.read_exact(bytes).await?;
        let Some(answer) = answer(bytes, &mut address) else { return Ok(()) };
        let mut out = Vec::with_capacity(answer.len() + 2);
        out.extend_from_slice(&u16::try_from(answer.len()).unwrap_or(0).to_be_bytes());
        out.extend_from_slice(&answer);
        stream.write_all(&out).await?;
    }
}

/// The answer to a query; none to what is no query.
pub(crate) fn answer(
    query: &[u8],
    address: &mut impl FnMut(&Name) -> std::net::Ipv4Addr,
) -> Option<Vec<u8>> {
    let query = Message::from_vec(query).ok()?;
    if query.metadata.message_type != MessageType::Query {
        return None;
    }
    let mut reply = Message::response(query.metadata.id, query.metadata.op_code);
    reply.metadata.recursion_desired = query.metadata.recursion_desired;
    reply.metadata.recursion_available = true;
    let [question] = query.queries.as_slice() else {
        reply.metadata.response_code = ResponseCode::FormErr;
        return reply.to_vec().ok();
    };
    reply.queries.push(question.clone());
    if query.metadata.op_code != OpCode::Query || question.query_class() != DNSClass::IN {
        reply.metadata.response_code = ResponseCode::NotImp;
        return reply.to_vec().ok();
    }
    reply.metadata.response_code = match (named(&question.name().to_ascii()), question.query_type())
    {
        (None, _) => ResponseCode::NXDomain,
        (Some(name), RecordType::A) => {
            let record = RData::A(A(address(&name)));
            reply.answers.push(Record::from_rdata(question.name().clone(), TTL, record));
            ResponseCode::NoError
        }
        // There is none: the guest goes on with the address that it has, and without what would
        // let it hide the name of the host (RFC 9460).
        (Some(_), RecordType::AAAA | RecordType::HTTPS | RecordType::SVCB) => ResponseCode::NoError,
        (Some(_), _) => ResponseCode::Refused,
    };
    reply.to_vec().ok()
}

/// The name, if it may be one of the internet's.
fn named(text: &str) -> Option<Name> {
    let host = Host::parse(text).ok()?;
    let name = host.name()?;
    let last = name.labels().next_back()?;
    (name.labels().count() > 1 && !LOCAL.contains(&last)).then(|| name.clone())
}
