//! Variables for the command: `-e` and `--env-file`.
//!
//! Values are wiped when they are dropped and are in no message: not even a line that cannot be
//! read is quoted. What stands on our own command line was seen by the whole machine before we
//! ran; a bare `-e KEY` is the way around that.

use std::collections::BTreeMap;
use std::ffi::{OsStr, OsString};
use std::fs::File;
use std::io::{self, Read};
use std::os::unix::ffi::{OsStrExt as _, OsStringExt as _};
use std::path::{Path, PathBuf};

use wire::text::{Secret, Text};
use zeroize::{Zeroize as _, Zeroizing};

use crate::failure::Failure;

/// Linux passes at most 2 MiB of arguments and environment unless its stack limit is raised.
const MAX_FILE: usize = 4 << 20;

/// The flags.
#[derive(clap::Args)]
pub(crate) struct EnvArgs {
    /// Set a variable for the command; a bare KEY takes the value from your environment
    ///
    /// Prefer the bare form for secrets: other users of this machine can read KEY=VALUE in the
    /// process list while Sandforge runs. Later ones win, and win over --env-file.
    #[arg(short = 'e', long = "env", value_name = "KEY[=VALUE]")]
    env: Vec<OsString>,

    /// Set variables from a file of KEY=VALUE lines
    ///
    /// A value is the rest of its line as it stands: quotes are part of it. A bare KEY takes the
    /// value from your environment; lines that begin with # are comments.
    #[arg(long, value_name = "FILE")]
    env_file: Vec<PathBuf>,
}

impl EnvArgs {
    /// All variables, bare ones from `lookup`.
    pub(crate) fn collect(
        self,
        lookup: impl Fn(&OsStr) -> Option<OsString>,
    ) -> Result<BTreeMap<Text, Secret>, Failure> {
        let mut variables = BTreeMap::new();
        for path in &self.env_file {
            let content = read(path)?;
            let content = content.strip_prefix(b"\xef\xbb\xbf").unwrap_or(&content);
            for (line, number) in content.split(|byte| *byte == b'\n').zip(1_usize..) {
                let line = line.strip_suffix(b"\r").unwrap_or(line);
                if line.trim_ascii().is_empty() || line.trim_ascii_start().starts_with(b"#") {
                    continue;
                }
                let (name, value) = parse(line, &lookup).map_err(|problem| {
                    let place = format!("{path:?} line {number}: {}", problem.text);
                    Failure { help: problem.help, ..Failure::usage(place) }
                })?;
                variables.insert(name, value);
            }
        }
        for argument in self.env {
            let argument = Zeroizing::new(argument.into_vec());
            let (name, value) = parse(&argument, &lookup).map_err(|problem| {
                let place = format!("-e: {}", problem.text);
                Failure { help: problem.help, ..Failure::usage(place) }
            })?;
            variables.insert(name, value);
        }
        Ok(variables)
    }
}

struct Problem {
    text: String,
    help: Option<String>,
}

/// `KEY=VALUE`, or `KEY` alone.
fn parse(
    text: &[u8],
    lookup: impl Fn(&OsStr) -> Option<OsString>,
) -> Result<(Text, Secret), Problem> {
    let (name, value) = match text.iter().position(|byte| *byte == b'=') {
        Some(at) => (&text[..at], Some(&text[at + 1..])),
        None => (text, None),
    };
    if name.is_empty() {
        return Err(Problem {
            text: "a variable has no name".into(),
            help: Some("write KEY=VALUE, or KEY to take it from your environment".into()),
        });
    }
    if name.iter().any(|byte| byte.is_ascii_whitespace() || byte.is_ascii_control()) {
        // A line without `=` may be a secret that lost its name: it is not repeated.
        let named =
            value.map_or_else(String::new, |_| format!(" {:?}", String::from_utf8_lossy(name)));
        let help = name
            .starts_with(b"export ")
            .then(|| "leave out `export`: lines are KEY=VALUE, not shell commands".into());
        let text = format!("the variable name{named} has a space or a control character in it");
        return Err(Problem { text, help });
    }
    let shown = String::from_utf8_lossy(name);
    let value = match value {
        Some(value) => value.to_vec(),
        None => lookup(OsStr::from_bytes(name))
            .ok_or_else(|| Problem {
                text: format!("{shown} is not set in your environment"),
                help: Some(format!("export {shown}=… first, or give a value: {shown}=VALUE")),
            })?
            .into_vec(),
    };
    let nul = |_| Problem {
        text: format!("the value of {shown} has a NUL byte in it, which no variable can hold"),
        help: None,
    };
    let name = Text::new(name).map_err(nul)?;
    Ok((name, Secret::new(value).map_err(nul)?))
}

/// The file's bytes; no copy of them is left in memory that was given back. A pipe will do.
fn read(path: &Path) -> Result<Zeroizing<Vec<u8>>, Failure> {
    let fail = |error: &io::Error| {
        Failure::usage(format!("cannot read the environment file {path:?}")).because(error)
    };
    let mut file = File::open(path).map_err(|error| fail(&error))?;
    let mut content = Zeroizing::new(Vec::new());
    let mut piece = Zeroizing::new([0; 4096]);
    loop {
        let count = match file.read(piece.as_mut()) {
            Ok(0) => return Ok(content),
            Ok(count) => count,
            Err(error) if error.kind() == io::ErrorKind::Interrupted => continue,
            Err(error) => return Err(fail(&error)),
        };
        if content.len() + count > MAX_FILE {
            let text = format!("the environment file {path:?} is larger than 4 MiB");
            return Err(Failure::usage(text));
        }
        append(&mut content, &piece[..count]);
    }
}

/// Grows by moving into a new buffer, so that the old one is wiped.
fn append(content: &mut Zeroizing<Vec<u8>>, piece: &[u8]) {
    if content.capacity() - content.len() < piece.len() {
        let mut larger = Vec::with_capacity(2 * (content.len() + piece.len()));
        larger.extend_from_slice(content);
        content.zeroize();
        **content = larger;
    }
    content.extend_from_slice(piece);
}

#[cfg(test)]
mod tests {
    use super::*;

    fn environment(name: &OsStr) -> Option<OsString> {
        (name == "TOKEN").then(|| "canary".into())
    }

    fn collected(env: &[&[u8]], files: &[&[u8]]) -> Result<BTreeMap<Text, Secret>, Failure> {
        let directory = tempfile::tempdir().unwrap();
        let paths: Vec<_> =
            (0..files.len()).map(|n| directory.path().join(n.to_string())).collect();
        for (path, content) in paths.iter().zip(files) {
            std::fs::write(path, content).unwrap();
        }
        let env = env.iter().map(|text| OsString::from_vec(text.to_vec())).collect();
        EnvArgs { env, env_file: paths }.collect(environment)
    }

    fn value(variables: &BTreeMap<Text, Secret>, name: &str) -> Vec<u8> {
        variables[&Text::from(name)].expose().to_vec()
    }

    #[test]
    fn a_value_is_all_behind_the_first_equals_sign() {
        let variables = collected(&[b"A=b=c ", b"EMPTY="], &[]).unwrap();
        assert_eq!(value(&variables, "A"), b"b=c ");
        assert_eq!(value(&variables, "EMPTY"), b"");
    }

    #[test]
    fn a_bare_name_comes_from_the_environment() {
        assert_eq!(value(&collected(&[b"TOKEN"], &[]).unwrap(), "TOKEN"), b"canary");
    }

    #[test]
    fn a_bare_name_that_is_not_set_is_an_error() {
        let failure = collected(&[b"NOPE"], &[]).unwrap_err();
        assert_eq!(failure.message, "-e: NOPE is not set in your environment");
    }

    #[test]
    fn bytes_that_are_not_utf8_pass() {
        assert_eq!(value(&collected(&[b"A=\xff\xfe"], &[]).unwrap(), "A"), b"\xff\xfe");
    }

    #[test]
    fn the_last_one_wins_and_arguments_win_over_files() {
        let variables = collected(&[b"A=3", b"A=4"], &[b"A=1\nB=1\n", b"B=2"]).unwrap();
        assert_eq!(value(&variables, "A"), b"4");
        assert_eq!(value(&variables, "B"), b"2");
    }

    #[test]
    fn a_file_has_comments_blank_lines_and_either_line_end() {
        let file = b"\xef\xbb\xbf# comment\n\n  # another\nA=1\r\nTOKEN\r\nQ=\"quoted\"";
        let variables = collected(&[], &[file]).unwrap();
        assert_eq!(variables.len(), 3);
        assert_eq!(value(&variables, "A"), b"1");
        assert_eq!(value(&variables, "TOKEN"), b"canary");
        assert_eq!(value(&variables, "Q"), b"\"quoted\"");
    }

    #[test]
    fn a_nul_in_a_file_is_told_with_its_line_but_not_its_value() {
        let failure = collected(&[], &[b"A=1\nB=can\0ary\n"]).unwrap_err();
        assert!(
            failure.message.ends_with(
                "line 2: the value of B has a NUL byte in it, which no variable can hold"
            )
        );
        assert!(!failure.to_string().contains("ary"));
    }

    #[test]
    fn no_message_repeats_a_value() {
        for bad in [&b"=canary"[..], b"can ary", b"canary\tx", b"export X=canary", b"A B=canary"] {
            let text = collected(&[bad], &[]).unwrap_err().to_string();
            assert!(!text.contains("canary") && !text.contains("ary"), "{text}");
        }
    }

    #[test]
    fn a_shells_export_is_explained() {
        let failure = collected(&[], &[b"export X=1"]).unwrap_err();
        assert!(failure.help.unwrap().contains("leave out `export`"));
    }

    #[test]
    fn a_file_larger_than_any_environment_is_refused() {
        let failure = collected(&[], &[&vec![b'#'; MAX_FILE + 1]]).unwrap_err();
        assert!(failure.message.ends_with("is larger than 4 MiB"));
    }
}
