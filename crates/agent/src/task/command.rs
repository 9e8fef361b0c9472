//! From a command to a running program: environment, PATH, exec.

use std::collections::BTreeMap;
use std::ffi::CString;
use std::io;

use wire::op::{Command, ErrorCode, OpError};
use wire::text::{Secret, Text};

use super::message::Report;
use super::user::User;

const PATH: &[u8] = b"/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin";
const TERM: &[u8] = b"xterm-256color";

/// The names and values of a task: the defaults of its user, and over them what the caller gave.
#[derive(Debug)]
pub(super) struct Environment(BTreeMap<Vec<u8>, Secret>);

impl Environment {
    /// Builds it. `home` is where the user is at home.
    pub(super) fn new(
        user: &User,
        home: &[u8],
        terminal: bool,
        given: BTreeMap<Text, Secret>,
    ) -> Self {
        let mut all: BTreeMap<Vec<u8>, Secret> = BTreeMap::new();
        let mut default = |name: &str, value: &[u8]| {
            // The values come out of files that hold no NUL or were split at one; were it not
            // so, the variable would be left out.
            if let Ok(value) = Secret::new(value.to_vec()) {
                all.insert(name.as_bytes().to_vec(), value);
            }
        };
        default("PATH", PATH);
        default("HOME", home);
        default("USER", &user.name);
        default("LOGNAME", &user.name);
        default("SHELL", &user.shell);
        default("LANG", b"C.UTF-8");
        if terminal {
            default("TERM", TERM);
        }
        all.extend(given.into_iter().map(|(name, value)| (name.into_bytes(), value)));
        Self(all)
    }

    fn path(&self) -> &[u8] {
        self.0.get(b"PATH".as_slice()).map_or(b"", Secret::expose)
    }

    fn to_exec(&self) -> Vec<CString> {
        self.0
            .iter()
            .filter_map(|(name, value)| {
                CString::new([name, &b"="[..], value.expose()].concat()).ok()
            })
            .collect()
    }
}

/// Whether a name can be that of a variable.
pub(crate) fn is_variable(name: &Text) -> bool {
    let name = name.as_bytes();
    !name.is_empty() && !name.contains(&b'=')
}

/// Replaces this process by the command; returns why that was not possible.
pub(super) fn exec(command: &Command, environment: &Environment) -> Report {
    let arguments: Vec<&[u8]> = match command {
        Command::Argv(arguments) => arguments.iter().map(Text::as_bytes).collect(),
        Command::Shell(line) => vec![b"/bin/sh", b"-c", line.as_bytes()],
    };
    let Some(name) = arguments.first().copied() else {
        return failed(ErrorCode::Invalid, "the command is empty".into());
    };
    let arguments: Vec<CString> =
        arguments.iter().filter_map(|argument| CString::new(*argument).ok()).collect();
    let variables = environment.to_exec();

    let mut not_allowed = None;
    for file in candidates(name, environment.path()) {
        let Ok(file) = CString::new(file) else { continue };
        let error = execve(&file, &arguments, &variables);
        match error.raw_os_error() {
            Some(libc::ENOENT | libc::ENOTDIR) => {
                if let Some(reason) = missing_interpreter(&file) {
                    return Report::NotFound(reason);
                }
            }
            // As in a shell, a later directory of PATH may have one that can be run.
            Some(libc::EACCES) => not_allowed = Some(reason(&file, &error)),
            Some(libc::E2BIG) => {
                let message = "the arguments and the environment are too long for the kernel";
                return failed(ErrorCode::Invalid, message.into());
            }
            Some(libc::ENOMEM | libc::EAGAIN) => {
                return failed(ErrorCode::Exhausted, reason(&file, &error));
            }
            _ => return Report::NotExecutable(reason(&file, &error)),
        }
    }
    not_allowed.map_or_else(
        || Report::NotFound(String::from_utf8_lossy(name).into_owned()),
        Report::NotExecutable,
    )
}

fn execve(file: &CString, arguments: &[CString], variables: &[CString]) -> io::Error {
    let pointers = |strings: &[CString]| -> Vec<*const libc::c_char> {
        strings.iter().map(|text| text.as_ptr()).chain([std::ptr::null()]).collect()
    };
    let (arguments, variables) = (pointers(arguments), pointers(variables));
    // SAFETY: both arrays end with a null pointer and point to strings that outlive the call.
    unsafe { libc::execve(file.as_ptr(), arguments.as_ptr(), variables.as_ptr()) };
    io::Error::last_os_error()
}

/// Where to look for a command: a name with a slash is the file itself.
fn candidates(name: &[u8], path: &[u8]) -> Vec<Vec<u8>> {
    if name.contains(&b'/') {
        return vec![name.to_vec()];
    }
    if name.is_empty() {
        return Vec::new();
    }
    path.split(|byte| *byte == b':')
        .map(|directory| match directory {
            b"" => name.to_vec(),
            _ => [directory, name].join(&b'/'),
        })
        .collect()
}

/// ENOENT on a file that is there: what is missing is the program that should run it.
fn missing_interpreter(file: &CString) -> Option<String> {
    use std::io::Read;
    let fd = rustix::fs::open(
        file.as_c_str(),
        rustix::fs::OFlags::RDONLY | rustix::fs::OFlags::CLOEXEC | rustix::fs::OFlags::NONBLOCK,
        rustix::fs::Mode::empty(),
    )
    .ok()?;
    let mut start = Vec::new();
    std::fs::File::from(fd).take(256).read_to_end(&mut start).ok()?;
    let name = file.to_string_lossy();
    Some(match interpreter(&start) {
        Some(interpreter) => {
            let interpreter = String::from_utf8_lossy(interpreter);
            format!("{interpreter}, the interpreter that {name} names")
        }
        None => format!("the dynamic loader that {name} names"),
    })
}

fn interpreter(start: &[u8]) -> Option<&[u8]> {
    let line = start.strip_prefix(b"#!")?.split(|byte| *byte == b'\n').next()?;
    line.trim_ascii().split(u8::is_ascii_whitespace).next()
}

fn reason(file: &CString, error: &io::Error) -> String {
    format!("{}: {error}", file.to_string_lossy())
}

fn failed(code: ErrorCode, message: String) -> Report {
    Report::Failed(OpError::new(code, message))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn user() -> User {
        User {
            uid: 1000,
            gid: 1000,
            groups: vec![],
            name: b"dev".to_vec(),
            home: None,
            shell: b"/bin/zsh".to_vec(),
        }
    }

    fn environment(given: &[(&str, &str)], terminal: bool) -> Vec<String> {
        let given = given
            .iter()
            .map(|(name, value)| (Text::from(*name), Secret::new((*value).into()).unwrap()))
            .collect();
        Environment::new(&user(), b"/home/dev", terminal, given)
            .to_exec()
            .into_iter()
            .map(|variable| variable.into_string().unwrap())
            .collect()
    }

    #[test]
    fn a_task_has_a_small_environment() {
        assert_eq!(
            environment(&[], false),
            [
                "HOME=/home/dev",
                "LANG=C.UTF-8",
                "LOGNAME=dev",
                "PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin",
                "SHELL=/bin/zsh",
                "USER=dev",
            ]
        );
    }

    #[test]
    fn the_callers_variables_win() {
        let all = environment(&[("HOME", "/x"), ("TERM", "dumb"), ("A", "1")], true);
        assert!(all.contains(&"HOME=/x".into()));
        assert!(all.contains(&"TERM=dumb".into()));
        assert!(all.contains(&"A=1".into()));
    }

    #[test]
    fn a_command_is_looked_for_along_path() {
        let found = |name: &str, path: &str| candidates(name.as_bytes(), path.as_bytes());
        assert_eq!(found("ls", "/bin:/usr/bin"), [b"/bin/ls".to_vec(), b"/usr/bin/ls".to_vec()]);
        assert_eq!(found("./ls", "/bin"), [b"./ls".to_vec()]);
        assert_eq!(found("ls", "/bin:"), [b"/bin/ls".to_vec(), b"ls".to_vec()]);
        assert!(found("", "/bin").is_empty());
    }

    #[test]
    fn an_interpreter_is_the_first_word_after_the_mark() {
        assert_eq!(interpreter(b"#! /usr/bin/env python3\nx"), Some(&b"/usr/bin/env"[..]));
        assert_eq!(interpreter(b"\x7fELF"), None);
    }

    #[test]
    fn names_that_no_variable_can_have() {
        assert!(is_variable(&"A".into()));
        assert!(!is_variable(&"".into()));
        assert!(!is_variable(&"A=B".into()));
    }
}
