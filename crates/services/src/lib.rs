//! What is known of a service that takes a credential: its hosts, where the credential stands in a
//! request, what a guest gets in its place, and which operations are never allowed unasked. Data, one
//! TOML file each; no secrets and no I/O.
#![forbid(unsafe_code)]

mod catalogue;
mod custom;
mod definition;
mod environment;
mod error;
mod parse;
mod placeholder;

use canonical::{Authority, Leniency};

pub use catalogue::{Catalogue, distinct};
pub use definition::{Parameter, ParameterKind};
pub use environment::{Given, environment};
pub use error::{Error, Fault, Unusable};

/// A service.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Service {
    /// The name that people use: `github`.
    pub name: String,
    /// Variables that hold the credential, here and in the guest, the one that wins first.
    pub env: Vec<String>,
    /// Variables of the guest that are not the credential itself: name and value. In the value,
    /// `{placeholder}` is the placeholder, and `{basic}` base64 of `user:placeholder`.
    pub extra_env: Vec<(String, String)>,
    /// Variables that give clients another base URL, and the path below the base.
    pub base_url_env: Vec<BaseUrl>,
    /// What the guest gets in place of the credential.
    pub placeholder: Shape,
    /// Hosts that the credential is for, exactly these.
    pub inject_hosts: Vec<Authority>,
    /// Hosts that belong to the service and never get it.
    pub plain_hosts: Vec<HostPattern>,
    /// Where it stands in a request; nowhere else is it put in.
    pub slots: Vec<Slot>,
    /// How it gets there.
    pub kind: Kind,
    /// What paths of its hosts may have.
    pub leniency: Leniency,
    /// Git over HTTPS at its hosts.
    pub git: Option<Git>,
    /// Registries, by the names that they have among the `auths` of a docker client.
    pub docker: Vec<String>,
    /// A credential that is not ours passes to its hosts too. Otherwise such a request is refused.
    pub foreign_credentials: bool,
    /// Rule lines of `access = "read-only"`.
    pub read_only: Vec<String>,
    /// Rule lines of `access = "full"`.
    pub full: Vec<String>,
    /// Rule lines that are denied unless the user names them.
    pub deny: Vec<String>,
}

/// A variable that clients take a base URL from.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct BaseUrl {
    /// Its name.
    pub variable: String,
    /// What follows the gateway's own prefix: `/v1`.
    pub path: String,
}

/// A host, or all below one: `*.example.com`, which `example.com` itself is not.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct HostPattern {
    /// `*` is one label, `**` any number.
    pub pattern: String,
    /// The port.
    pub port: u16,
}

/// What a placeholder looks like.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Shape {
    /// How it begins: clients look at it.
    pub prefix: String,
    /// What follows.
    pub charset: Charset,
    /// Its length in bytes, with the prefix. `None` is the length of the secret.
    pub length: Option<usize>,
}

/// Characters of a placeholder.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Charset {
    /// `0-9a-f`.
    Hex,
    /// `0-9A-Za-z`.
    Alphanumeric,
    /// `0-9A-Za-z_-`.
    Base64Url,
    /// `2-7A-Z`.
    Base32,
}

/// A place of a request that holds a credential and nothing else.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Slot {
    /// A header: `x-api-key: K`, or with a scheme `authorization: Bearer K`.
    Header {
        /// Its name in lower case.
        name: String,
        /// What stands before the credential, without the space. Compared without case.
        scheme: Option<String>,
    },
    /// The password of `authorization: Basic`.
    Basic {
        /// The only user it is for; any when absent.
        username: Option<String>,
    },
    /// The user of `authorization: Basic`, with whatever password.
    BasicUser,
    /// A key of the query. Sent on as the header, where there is one, so that it is in no log.
    Query {
        /// The key.
        key: String,
        /// The header that takes its place.
        header: Option<String>,
    },
    /// One of the protocols that a WebSocket asks for, behind a prefix.
    WebSocketProtocol {
        /// What stands before the credential.
        prefix: String,
    },
}

/// How a credential gets into a request.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Kind {
    /// It takes the place of its placeholder.
    Static,
    /// The request is signed again (AWS Signature Version 4). The secret is `ID:SECRET[:TOKEN]`.
    Aws {
        /// Names of the services that it may sign for; all when empty.
        services: Vec<String>,
        /// The regions; all when empty.
        regions: Vec<String>,
    },
}

/// Git over HTTPS.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Git {
    /// Hosts that serve repositories.
    pub hosts: Vec<Authority>,
    /// The user of `authorization: Basic`.
    pub username: String,
    /// Prefixes of SSH remotes that become HTTPS: `git@github.com:`.
    pub instead_of: Vec<String>,
}
