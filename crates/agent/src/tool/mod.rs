//! File operations, run inside a task sandbox.
//!
//! The agent forks a child, confines it as it would a task of the same user, and calls [`run`].
//! So this is plain blocking code, and a hostile link in the workspace gets it no further than
//! the task itself gets. The one thing it has that a task has not is a stream to the host.

mod content;
mod entry;
mod tar;
mod tree;
mod watch;

use std::ffi::OsStr;
use std::fmt::Display;
use std::fs::File;
use std::io;
use std::os::unix::ffi::OsStrExt as _;
use std::path::Path;

use archive::Printable;
use rustix::io::Errno;
use serde_json::Value;
use wire::op::{
    ErrorCode, List, Mkdir, OpError, Operation, Read, Remove, Rename, Stat, TarIn, TarOut, Watch,
    Write,
};
use wire::text::Text;

/// Whether [`run`] knows the operation.
pub(crate) fn is_tool(op: &str) -> bool {
    matches!(
        op,
        Read::NAME
            | Write::NAME
            | Stat::NAME
            | List::NAME
            | Mkdir::NAME
            | Rename::NAME
            | Remove::NAME
            | Watch::NAME
            | TarIn::NAME
            | TarOut::NAME
    )
}

/// Runs one operation to its end. `input` ends when the host has ended the stream; a broken
/// `output` means that the host gave up, which is [`ErrorCode::Cancelled`] and of no interest to
/// anyone. Expects SIGPIPE to be ignored, as the standard library leaves it.
///
/// # Errors
/// What failed, on which path, and why.
pub(crate) fn run(op: &str, payload: &[u8], input: File, output: File) -> Result<Value, OpError> {
    match op {
        Read::NAME => perform(payload, |op| content::read(&op, &output)),
        Write::NAME => perform(payload, |op| content::write(&op, &input)),
        Stat::NAME => perform(payload, |op| entry::stat(&op)),
        List::NAME => perform(payload, |op| entry::list(&op, output)),
        Mkdir::NAME => perform(payload, |op| tree::mkdir(&op)),
        Rename::NAME => perform(payload, |op| tree::rename(&op)),
        Remove::NAME => perform(payload, |op| tree::remove(&op)),
        Watch::NAME => perform(payload, |op| watch::watch(&op, &input, output)),
        TarIn::NAME => perform(payload, |op| tar::tar_in(&op, input, output)),
        TarOut::NAME => perform(payload, |op| tar::tar_out(&op, input, output)),
        _ => {
            Err(OpError::new(ErrorCode::Unsupported, format!("there is no file operation '{op}'")))
        }
    }
}

fn perform<T: Operation>(
    payload: &[u8],
    act: impl FnOnce(T) -> Result<T::Reply, OpError>,
) -> Result<Value, OpError> {
    let op = serde_json::from_slice(payload).map_err(|error| {
        OpError::new(ErrorCode::Invalid, format!("the payload of '{}': {error}", T::NAME))
    })?;
    let reply = act(op)?;
    serde_json::to_value(reply)
        .map_err(|error| OpError::new(ErrorCode::Failed, format!("cannot encode: {error}")))
}

/// A path of a payload. Relative ones are refused: there is no directory that they are relative
/// to.
fn absolute(path: &Text) -> Result<&Path, OpError> {
    let bytes = path.as_bytes();
    if bytes.starts_with(b"/") {
        Ok(Path::new(OsStr::from_bytes(bytes)))
    } else {
        let shown = Printable(bytes);
        Err(OpError::new(ErrorCode::Invalid, format!("the path '{shown}' is not absolute")))
    }
}

fn shown(path: &Path) -> Printable<'_> {
    Printable(path.as_os_str().as_bytes())
}

fn invalid(message: impl Into<String>) -> OpError {
    OpError::new(ErrorCode::Invalid, message)
}

/// The error of a system call: what was tried, on which path, and the system's reason.
fn failed(tried: &str, path: &Path, error: impl Into<io::Error>) -> OpError {
    let error = error.into();
    OpError::new(code(&error), format!("cannot {tried} '{}': {}", shown(path), reason(&error)))
}

/// An error that already says what was tried and on what.
fn told(message: &impl Display, error: &io::Error) -> OpError {
    OpError::new(code(error), message.to_string())
}

fn code(error: &io::Error) -> ErrorCode {
    match Errno::from_io_error(error) {
        Some(Errno::NOENT) => ErrorCode::NotFound,
        Some(Errno::EXIST | Errno::NOTEMPTY) => ErrorCode::Exists,
        Some(Errno::ACCESS | Errno::PERM | Errno::ROFS) => ErrorCode::PermissionDenied,
        Some(Errno::NOSPC | Errno::DQUOT | Errno::NOMEM | Errno::MFILE | Errno::NFILE) => {
            ErrorCode::Exhausted
        }
        Some(Errno::PIPE) => ErrorCode::Cancelled,
        Some(Errno::NOTDIR | Errno::ISDIR | Errno::LOOP | Errno::NAMETOOLONG | Errno::INVAL) => {
            ErrorCode::Invalid
        }
        _ => ErrorCode::Failed,
    }
}

/// The system's words without the number.
fn reason(error: &io::Error) -> String {
    let text = error.to_string();
    match text.rfind(" (os error ") {
        Some(end) => text[..end].to_owned(),
        None => text,
    }
}

/// The output is gone: the host gave up.
fn output_failed(error: &io::Error) -> OpError {
    OpError::new(code(error), format!("cannot send: {}", reason(error)))
}

#[cfg(test)]
mod tests {
    //! Every operation as the host asks for it: JSON in, pipes beside it.

    use std::io::{Read as _, Write as _};
    use std::thread;

    use serde_json::json;

    use super::*;

    /// What came of an operation: its reply and all its output.
    pub(super) type Outcome = (Result<Value, OpError>, Vec<u8>);

    pub(super) fn pipe() -> (File, File) {
        let (read, write) = rustix::pipe::pipe_with(rustix::pipe::PipeFlags::CLOEXEC).unwrap();
        (read.into(), write.into())
    }

    pub(super) fn path(path: &Path) -> Value {
        serde_json::to_value(Text::new(path.as_os_str().as_bytes()).unwrap()).unwrap()
    }

    /// Runs an operation with this input, as the host would.
    // A literal is easier to read without a reference.
    #[allow(clippy::needless_pass_by_value)]
    pub(super) fn with_input(op: &str, payload: Value, input: &[u8]) -> Outcome {
        let (input_read, mut input_write) = pipe();
        let (mut output_read, output_write) = pipe();
        thread::scope(|scope| {
            scope.spawn(move || {
                // The operation may end before it has read everything.
                let _ = input_write.write_all(input);
            });
            let output = scope.spawn(move || {
                let mut output = Vec::new();
                output_read.read_to_end(&mut output).unwrap();
                output
            });
            let result = run(op, payload.to_string().as_bytes(), input_read, output_write);
            (result, output.join().unwrap())
        })
    }

    pub(super) fn ask(op: &str, payload: Value) -> Outcome {
        with_input(op, payload, b"")
    }

    /// The code and the message of a failure.
    pub(super) fn refusal(op: &str, payload: Value) -> (ErrorCode, String) {
        let error = ask(op, payload).0.unwrap_err();
        (error.code, error.message)
    }

    #[test]
    fn relative_paths_and_unknown_fields_are_refused_everywhere() {
        let ops =
            ["read", "write", "stat", "list", "mkdir", "remove", "watch", "tar-in", "tar-out"];
        for op in ops {
            assert!(is_tool(op));
            let (code, message) = refusal(op, json!({"path": "a/b"}));
            assert_eq!(code, ErrorCode::Invalid, "{op}");
            assert_eq!(message, "the path 'a/b' is not absolute", "{op}");
            let (code, _) = refusal(op, json!({"path": "/tmp", "surprise": 1}));
            assert_eq!(code, ErrorCode::Invalid, "{op}");
        }
        let (code, _) = refusal("rename", json!({"from": "/a", "to": "b"}));
        assert_eq!(code, ErrorCode::Invalid);
    }

    #[test]
    fn other_operations_are_not_ours() {
        assert!(!is_tool("exec"));
        assert_eq!(refusal("exec", json!({})).0, ErrorCode::Unsupported);
    }

    #[test]
    fn a_path_in_a_message_cannot_drive_a_terminal() {
        let (code, message) = refusal("stat", json!({"path": "/no/\u{1b}[2Jsuch"}));
        assert_eq!(code, ErrorCode::NotFound);
        assert_eq!(message, "cannot look at '/no/\\u{1b}[2Jsuch': No such file or directory");
    }
}
