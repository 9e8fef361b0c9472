//! `docker-credential-*`: programs that have the logins.

use std::io;
use std::process::Stdio;
use std::time::Duration;

use serde::Deserialize;
use tokio::io::{AsyncRead, AsyncReadExt as _, AsyncWriteExt as _};
use tokio::process::Command;
use wire::text::Secret;
use zeroize::Zeroizing;

use crate::credentials::Login;
use crate::shown::shown;

const PATIENCE: Duration = Duration::from_secs(10);
const LONGEST_ANSWER: usize = 64 << 10;
const LONGEST_COMPLAINT: usize = 4 << 10;
/// What all of them say where they have nothing.
const NOTHING: &str = "credentials not found";

/// Why a helper gave no login.
#[derive(Debug, thiserror::Error)]
pub enum HelperError {
    /// The configuration names something that is no program's name.
    #[error("{0:?} is not the name of a helper for credentials")]
    Name(String),
    /// It cannot be started.
    #[error(
        "cannot start docker-credential-{name}, which the configuration of docker names: {source}"
    )]
    Start {
        /// Which.
        name: String,
        /// Why not.
        source: io::Error,
    },
    /// It takes too long.
    #[error("docker-credential-{0} did not answer within {PATIENCE:?}")]
    Slow(String),
    /// It failed.
    #[error("docker-credential-{name} failed{said}")]
    Failed {
        /// Which.
        name: String,
        /// What it said, filtered.
        said: String,
    },
    /// It said something else than a login.
    #[error("docker-credential-{0} answered with something else than a login")]
    Answer(String),
}

#[derive(Deserialize)]
#[serde(rename_all = "PascalCase")]
struct Answer {
    username: String,
    secret: Secret,
}

/// Asks the helper of this name for the login of `server`.
pub(crate) async fn get(name: &str, server: &str) -> Result<Option<Login>, HelperError> {
    let fits = |byte: u8| byte.is_ascii_alphanumeric() || b"._-".contains(&byte);
    if name.is_empty() || name.len() > 64 || !name.bytes().all(fits) {
        return Err(HelperError::Name(shown(name)));
    }
    let started = |source| HelperError::Start { name: name.into(), source };
    let mut child = Command::new(format!("docker-credential-{name}"))
        .arg("get")
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .process_group(0)
        .kill_on_drop(true)
        .spawn()
        .map_err(started)?;
    let group = Group(child.id());
    let (stdin, stdout, stderr) = (child.stdin.take(), child.stdout.take(), child.stderr.take());
    let (Some(mut stdin), Some(stdout), Some(stderr)) = (stdin, stdout, stderr) else {
        return Err(started(io::ErrorKind::BrokenPipe.into()));
    };
    let talk = async {
        let ask = async {
            // One that answers without reading is not at fault.
            let _ = stdin.write_all(server.as_bytes()).await;
            drop(stdin);
        };
        let (answer, complaint, ()) =
            tokio::join!(bounded(stdout, LONGEST_ANSWER), bounded(stderr, LONGEST_COMPLAINT), ask);
        (answer, complaint, child.wait().await)
    };
    let (answer, complaint, status) =
        tokio::time::timeout(PATIENCE, talk).await.map_err(|_| HelperError::Slow(name.into()))?;
    drop(group);
    let is_good = status.is_ok_and(|status| status.success());
    if !is_good {
        // Most of them complain on stdout, where the login would be.
        let both = [&answer, &complaint].map(|bytes| shown(&String::from_utf8_lossy(bytes)));
        if both.iter().any(|text| text.contains(NOTHING)) {
            return Ok(None);
        }
        let said = if both[1].is_empty() { String::new() } else { format!(": {}", both[1]) };
        return Err(HelperError::Failed { name: name.into(), said });
    }
    let answer: Answer =
        serde_json::from_slice(&answer).map_err(|_| HelperError::Answer(name.into()))?;
    Ok(Some(match answer.username.as_str() {
        "<token>" => Login::Identity(answer.secret),
        _ => Login::Password { user: answer.username, password: answer.secret },
    }))
}

/// As much as `most`; what follows is read and forgotten, so that nobody waits for a reader.
async fn bounded(mut from: impl AsyncRead + Unpin, most: usize) -> Zeroizing<Vec<u8>> {
    let mut kept = Zeroizing::new(Vec::with_capacity(most));
    let mut buffer = Zeroizing::new([0; 4096]);
    while let Ok(count) = from.read(buffer.as_mut_slice()).await {
        if count == 0 {
            break;
        }
        let room = most - kept.len();
        kept.extend_from_slice(&buffer[..count.min(room)]);
    }
    kept
}

/// The process group of a helper, which ends with it: it may have started others.
struct Group(Option<u32>);

impl Drop for Group {
    fn drop(&mut self) {
        let pid = self.0.and_then(|id| i32::try_from(id).ok());
        if let Some(pid) = pid.and_then(rustix::process::Pid::from_raw) {
            // It is gone where all is well.
            let _ = rustix::process::kill_process_group(pid, rustix::process::Signal::KILL);
        }
    }
}
