//! The server that a command talks to: the one at `SANDFORGE_URL`, else the one of this user
//! that runs, else one within this process.

use std::env;
use std::ffi::OsString;
use std::fs;
use std::os::unix::net::UnixStream;
use std::path::PathBuf;

use crate::embedded::Local;
use crate::failure::Failure;
use crate::keyfile;
use crate::signals::Signals;
use client::Client;
use client::api::Page;
use fleet::paths;

/// Where the server is.
const URL: &str = "SANDFORGE_URL";
/// What it knows the caller by.
pub(crate) const TOKEN: &str = "SANDFORGE_TOKEN";
/// The certificate that it must show, or who signed it.
const CA: &str = "SANDFORGE_CA";
/// The file of the key that signs requests.
const KEY: &str = "SANDFORGE_KEY";

/// A way to a server.
#[derive(Debug)]
struct Connection {
    client: Client,
    /// The server, where it is in this process.
    local: Option<Local>,
}

impl Connection {
    /// Finds the server. Nothing is sent yet.
    async fn open() -> Result<Self, Failure> {
        let mut local = None;
        let builder = match variable(URL)? {
            Some(url) => {
                let authorities = authorities(&url)?;
                Client::builder().url(url).authorities(authorities)
            }
            None => {
                let socket = paths::socket();
                // A socket that nobody listens on any more is as good as none.
                match UnixStream::connect(&socket) {
                    Ok(_) => Client::builder().unix_socket(socket),
                    Err(_) => local.insert(Local::start().await?).builder(),
                }
            }
        };
        let builder = match variable(TOKEN)? {
            // Whoever is in this process is its user; a token would only say less.
            Some(token) if local.is_none() => builder.token(token),
            _ => builder,
        };
        let builder = match env::var_os(KEY).filter(|path| !path.is_empty()) {
            Some(path) => builder.sign_with(keyfile::read(path.as_ref())?),
            None => builder,
        };
        Ok(Self { client: builder.build()?, local })
    }

    /// Lets go of it in order.
    async fn close(self) {
        drop(self.client);
        if let Some(local) = self.local {
            local.stop().await;
        }
    }
}

/// Whether there is a server that goes on when this command has ended.
pub(crate) fn has_server() -> Result<bool, Failure> {
    Ok(variable(URL)?.is_some() || UnixStream::connect(paths::socket()).is_ok())
}

/// A variable of our own environment; one that is empty is as good as none.
pub(crate) fn variable(name: &str) -> Result<Option<String>, Failure> {
    env::var_os(name)
        .filter(|value| !value.is_empty())
        .map(OsString::into_string)
        .transpose()
        .map_err(|_| Failure::usage(format!("{name} is not UTF-8")))
}

/// The certificates to trust: those of `SANDFORGE_CA`, or of this user's own server.
fn authorities(url: &str) -> Result<Vec<u8>, Failure> {
    let (path, named) = match env::var_os(CA).filter(|value| !value.is_empty()) {
        Some(path) => (PathBuf::from(path), true),
        None => {
            let data = paths::data().map_err(|error| Failure::usage(error.to_string()))?;
            (data.join("tls").join("server.pem"), false)
        }
    };
    fs::read(&path).map_err(|error| {
        let what = if named { CA } else { "the certificate of this user's own server" };
        Failure::usage(format!("cannot read {path:?}, {what}")).because(&error).help(format!(
            "save what `sandforge serve --print-ca` prints on the host of {url}, and name the \
             file with {CA}"
        ))
    })
}

/// Does one piece of work with a server. A signal of the user gives it up.
pub(crate) fn with_server<T>(
    work: impl AsyncFnOnce(&Client, &mut Signals) -> Result<T, Failure>,
) -> Result<T, Failure> {
    crate::command::block_on(async {
        let mut signals = Signals::catch()?;
        let connection = signals.unless_asked(Connection::open()).await??;
        let done = work(&connection.client, &mut signals).await;
        connection.close().await;
        done
    })
}

/// Like [`with_server`], for work that is dropped as it is where a signal comes.
pub(crate) fn ask<T>(work: impl AsyncFnOnce(&Client) -> Result<T, Failure>) -> Result<T, Failure> {
    with_server(async |client, signals| signals.unless_asked(work(client)).await?)
}

/// All pages of a listing.
pub(crate) async fn all<T>(
    mut page: impl AsyncFnMut(Option<String>) -> Result<Page<T>, client::Error>,
) -> Result<Vec<T>, Failure> {
    let mut items = Vec::new();
    let mut cursor = None;
    loop {
        let next = page(cursor).await?;
        items.extend(next.items);
        match next.next_cursor {
            Some(next) => cursor = Some(next),
            None => return Ok(items),
        }
    }
}
